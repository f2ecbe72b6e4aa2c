"""Evaluate a trained model: python evaluate.py checkpoint=RUN key=value …"""

from pathlib import Path

from rag.checkpoint_config import from_checkpoint
from rag.cli import compose_command, many_imports, mistakes_as_user_errors, quieten, run_command
from rag.commands.corpus import fetch_corpus
from rag.commands.retrieving import check_finds, without_reader
from rag.compose import resolved

USAGE = """
python evaluate.py checkpoint=RUN [key=value …]

Answers the questions of a split with the model of the run folder RUN and that run's own settings, and writes
predictions.jsonl and result.json to RUN/evaluation/. Rerun the same command to resume.

  python evaluate.py checkpoint=outputs/demo/rag_sequence
  python evaluate.py checkpoint=… split=dev limit=100          a random sample of 100 dev questions
  python evaluate.py checkpoint=… n_docs=20 decoding=beam4     more passages, beam search
  python evaluate.py checkpoint=… k_sweep=[1,5,10,50]          metrics against K (figure 3)
  python evaluate.py checkpoint=… int8=true                  on a CPU, the generator's products in 8 bits
  python evaluate.py checkpoint=… index.path=indexes/other     another index, nothing retrained (hot-swap)
  python evaluate.py checkpoint=… task.test=my.jsonl           other questions
  python evaluate.py checkpoint=… retriever=given task.test=fid.json    the passages that each question comes with
  python evaluate.py checkpoint=… export=[trec,kilt,ragas]     results as other tools read them; trec=true for one
  python evaluate.py checkpoint=outputs/demo/dpr               a bi-encoder: recall only; bm25=true adds BM25's
  python evaluate.py reader=none retriever=bm25 corpus.path=my.tsv task=qa task.test=my.jsonl    a retriever alone
  python evaluate.py checkpoint=facebook/rag-sequence-nq experiment=table1/nq_rag_sequence
  torchrun --nproc-per-node=2 evaluate.py checkpoint=…         two processes share the questions
  python evaluate.py report=table1                             finished runs next to the paper's table
"""


@mistakes_as_user_errors()
def evaluate(*overrides: str) -> Path | None:
    """`python evaluate.py` with these overrides, from Python; the results' folder, None for a report.

    Raises UserError for what the command would tell as a mistake.
    """
    cfg = compose_command("evaluate", list(overrides))
    if cfg.report is not None:
        from rag.reports.paper_tables import write_table

        outputs = Path(cfg.paths.outputs)
        write_table(cfg.report, outputs, outputs / "reports")
        return None
    fetch_corpus(cfg)
    cfg = without_reader(cfg, list(overrides)) if cfg.reader else from_checkpoint(cfg, list(overrides))
    check_finds(cfg := resolved(cfg))
    with many_imports():
        from rag.commands import evaluating  # what takes seconds to import, after what is told at once

        quieten()
    return evaluating.evaluate(cfg, list(overrides))


def main() -> None:
    """The command itself: a mistake is one sentence and exit code 2."""
    run_command("evaluate", USAGE, evaluate)

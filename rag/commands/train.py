"""Train a retriever, a generator, or both end to end: python train.py experiment=… key=value …"""

import sys
from pathlib import Path

from rag.cli import compose_command, many_imports, mistakes_as_user_errors, quieten, run_command
from rag.commands.corpus import fetch_corpus
from rag.compose import resolved
from rag.reports.finished import complete_run
from rag.sweep import sweep_if_asked
from rag.training import plan

USAGE = """
python train.py [experiment=NAME] [key=value …]

Trains what the experiment describes and writes a run folder (model/, metrics, config) under outputs/. Rerun the same
command to resume; a finished run is left alone.

  python train.py                                            RAG-Sequence end to end on the built-in mini-wiki
  python train.py experiment=miniwiki/rag_token              one of configs/experiment/
  python train.py experiment=local/rag_sequence task.train=my.jsonl corpus.path=my.tsv
  python train.py optimization.lr=1e-4 trainer.max_steps=500 n_docs=10 seed=2
  python train.py paths.run=outputs/mine                     another run folder
  python train.py overwrite=true                             replace a run made with other settings
  python train.py logger=wandb                               Weights & Biases (offline unless logged in) beside CSV
  python train.py logger=tensorboard callbacks=learning_rate  TensorBoard beside CSV; Lightning's callbacks
  python train.py -m optimization.lr=1e-4,3e-4 seed=1,2      a sweep: a run for each combination, and a table of all
  python train.py retriever=dense_trained refresh=500        train the passage encoder too; re-embed the index at times
  python train.py experiment=dpr/nq datamodule.remine=500    mine hard negatives with the encoders every 500 steps
  python train.py experiment=… info=true                     show sizes, batch and memory, and stop
  python train.py experiment=… debug=smoke                   a few steps of everything; debug=overfit: one batch
  python train.py experiment=… compile=true trainer.precision=bf16-mixed     a sixth faster on a GPU
  python train.py experiment=… trainer.devices=4 trainer.precision=bf16-mixed trainer.accumulate_grad_batches=2
"""


@mistakes_as_user_errors()
def train(*overrides: str) -> Path:
    """`python train.py` with these overrides, from Python; the run's folder.

    Raises UserError for what the command would tell as a mistake.
    """
    cfg = resolved(compose_command("train", list(overrides)))
    fetch_corpus(cfg)
    if plan.check(cfg, list(overrides)):
        complete_run(folder := Path(cfg.paths.run))
        return folder
    with many_imports():
        from rag.commands import training  # what takes seconds to import, after what is told at once

        quieten()
    return training.train(cfg)


def main() -> None:
    """The command itself: a mistake is one sentence and exit code 2."""
    sweep_if_asked(sys.argv[0], sys.argv[1:])
    run_command("train", USAGE, train)

"""Whether the project's reader knows what a folder of documents does not hold, and the calibration that comes with it.

    python -m benchmarks.answerability DATA [--foreign FILE] [--index FOLDER] [--limit 600] [--save] [--report FOLDER]

Asks `limit` dev questions of SQuAD as `python -m rag.ask documents=` asks them, over all passages of DATA: as they are,
and with every passage taken out that holds an answer. With --foreign, also half as many questions of another set, of
which no passage holds an answer. Half of the articles are fitted on, the others measured. --save fits once more, on all
of them, and writes that calibration to configs/answerability.json; --report writes the page and picture of `python -m
rag.analysis answerability`.

DATA holds passages.tsv, and squad_dev.jsonl or dev.jsonl with positive_ids, each also as .gz or .xz; FILE has questions
with answers. --index: where the index of MiniLM is, or is to be made.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from hydra.utils import instantiate

from benchmarks.reader import minilm_index
from rag.analysis.answerability import KINDS, fit_and_measure, halves, measure, shown
from rag.ask.command import quoted
from rag.ask.documents import CALIBRATION
from rag.cli import mistakes_in_one_sentence, quieten
from rag.compose import CONFIGS, compose_config, plain
from rag.evaluation.calibration import Calibration, identity_of
from rag.evaluation.evidence import FEATURES
from rag.evaluation.unanswerable import REMOVED, Asked, ask, holds_answer
from rag.files import packed, write_aside
from rag.index.passages import PassageStore
from rag.metrics.refusal import refused_with
from rag.safe_text import json_text
from rag.tasks.example import Example
from rag.tasks.qa import QuestionAnswering, read_examples
from rag.training.questions import sample

# What means the same over any folder: BM25's scores grow with the number of passages, and so do the retriever's.
OVER_ANY_PASSAGES = tuple(name for name in FEATURES if name != "retrieval")
PRECISION = 0.8
AT_ONCE = 16


def held_nowhere(examples: Sequence[Example], store: PassageStore) -> list[Example]:
    """The examples none of whose answers stands anywhere in the passages, whatever the case."""
    everything = "\n".join(f"{passage.title} {passage.text}" for passage in store).casefold()
    return [
        each
        for each in examples
        if each.answers and not any(answer.casefold() in everything for answer in each.answers)
    ]


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.answerability",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("--foreign", type=Path)
    parser.add_argument("--index", type=Path, default=Path("indexes/minilm"))
    parser.add_argument("--limit", type=int, default=600)
    parser.add_argument("--save", action="store_true")
    parser.add_argument("--report", type=Path)
    given = parser.parse_args(arguments)
    quieten()
    passages = packed(given.data / "passages.tsv")
    if not (given.index / "manifest.json").exists():
        minilm_index(passages, given.index)
    cfg = compose_config("documents", [f"documents={quoted(passages)}", f"index.path={quoted(given.index)}"])
    model = instantiate(plain(cfg.model)).eval()
    decoding, n_docs, store = instantiate(cfg.decoding), cfg.n_docs, model.retriever.index.passages
    dev = packed(given.data / "squad_dev.jsonl", given.data / "dev.jsonl")
    examples = sample([each for each in read_examples(dev) if each.positive_ids], given.limit)
    task = QuestionAnswering(passages=str(passages), dev=str(dev))
    start = time.process_time()
    asked = ask(model, examples, decoding, n_docs, AT_ONCE)
    out = [holds_answer(task, example) for example in examples]
    asked += ask(model, examples, decoding, n_docs, AT_ONCE, out, description="asking without")
    fitted_half = halves(examples, store)
    foreign: list[Asked] = []
    if given.foreign is not None:
        others = sample(held_nowhere(read_examples(given.foreign), store), given.limit // 2)
        found = ask(
            model, others, decoding, n_docs, AT_ONCE, answerable=False, description="asking of another set"
        )
        foreign = [replace(each, number=len(examples) + each.number) for each in found]
        fitted_half += [each.number % 2 == 0 for each in foreign]
    seconds = (time.process_time() - start) / len(asked + foreign)
    fit_on_foreign = [each for each in foreign if fitted_half[each.number]]
    calibration, measured = fit_and_measure(
        asked + fit_on_foreign,
        fitted_half,
        PRECISION,
        identity_of(model),
        n_docs,
        len(store),
        OVER_ANY_PASSAGES,
    )
    page = shown(
        calibration, measured, "SQuAD dev, each also asked with its passages taken out", KINDS[REMOVED]
    )
    print(page.text)
    print(page.table.to_string(index=False))
    rest = [each for each in foreign if not fitted_half[each.number]]
    if rest and given.foreign is not None:
        answered = [each for each in measured.asked if each.answerable]
        _, refused, _ = refused_with(measure(calibration, [*answered, *rest]).score, calibration.threshold)
        print(
            f"of {len(rest)} questions of {given.foreign.name} that no passage answers, refused with the same "
            f"threshold: {refused.value:.3f} [{refused.low:.3f}, {refused.high:.3f}]"
        )
    print(f"{seconds:.3f} CPU seconds a question")
    if given.save:
        every = [*asked, *foreign]
        evidence, truth = [each.evidence for each in every], [each.answerable for each in every]
        of_all = Calibration.fit(
            evidence, truth, PRECISION, OVER_ANY_PASSAGES, identity_of(model), n_docs, len(store)
        )
        of_all.save(CONFIGS / CALIBRATION)
        print(f"written: {CONFIGS / CALIBRATION}")
    if given.report is not None:
        command = ["python", "-m", "benchmarks.answerability", *arguments]
        print(f"written: {page.write(given.report, 'answerability', command)}")
        with write_aside(given.report / "asked.jsonl") as aside:
            lines = (
                json_text(asdict(each) | {"fitted_on": fitted_half[each.number]}) for each in asked + foreign
            )
            aside.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    with mistakes_in_one_sentence():
        main(sys.argv[1:])

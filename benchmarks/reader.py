"""How well a reader reads, and how far its confidence can be compared from passage to passage.

    python -m benchmarks.reader DATA [--checkpoint RUN] [--index FOLDER] [-k 5] [--limit 1000]

Exact match and F1 of dev questions: with the gold passage; then as RAG-Sequence over the K passages of hybrid retrieval
(MiniLM and BM25), with its p(z|x), and with a uniform one, where the reader alone decides which passage to believe. A
reader that is as sure of itself on wrong passages as on right ones loses most of its answers there.

DATA holds passages.tsv, and squad_dev.jsonl or dev.jsonl with positive_ids, each also as .gz or .xz. --checkpoint: a
run of experiment=wiki/reader, or a generator's folder; by default the reader that comes with the project. --index:
where the index of MiniLM is, or is to be made.
"""

import argparse
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console

from rag.checkpoint import open_generator
from rag.cli import mistakes_in_one_sentence, quieten
from rag.decoding.generation import generate
from rag.decoding.settings import Decoding
from rag.encoders.opening import open_passage_encoder
from rag.files import packed
from rag.index.folder import Index
from rag.marginalize import doc_logprobs
from rag.metrics.bootstrap import mean_with_interval
from rag.metrics.qa import exact_match, token_f1
from rag.minilm import NAME
from rag.model import RagSequence
from rag.progress import progress_bar
from rag.reports.page import table
from rag.retrievers import BM25, GoldRetriever, HybridRetriever
from rag.tasks.example import Example
from rag.tasks.qa import read_examples
from rag.training.questions import sample

DECODING = Decoding(max_new_tokens=12, min_new_tokens=1)
AT_ONCE = 32


def answered(
    model: RagSequence, examples: Sequence[Example], what: str, uniform: bool = False
) -> Iterator[tuple[str, ...]]:
    """Of each question, the answer with the model's p(z|x), and if wanted with a uniform one over the same passages."""
    with progress_bar(what, len(examples), "questions") as advance, torch.inference_mode():
        for start in range(0, len(examples), AT_ONCE):
            asked = [example.question for example in examples[start : start + AT_ONCE]]
            contexts = model.read(model.prepare(asked))
            read = [contexts]
            if uniform:
                read.append(
                    replace(contexts, doc_logprobs=doc_logprobs(torch.zeros_like(contexts.doc_logprobs)))
                )
            found = [[answers[0].text for answers in generate(model, each, DECODING)] for each in read]
            yield from zip(*found, strict=True)
            advance(len(asked))


def row(name: str, texts: Sequence[str], examples: Sequence[Example]) -> list[str]:
    answers = [example.answers for example in examples]
    em, f1 = (mean_with_interval(metric(texts, answers)) for metric in (exact_match, token_f1))
    return [name, f"{em.value:.3f}", f"{em.low:.3f} – {em.high:.3f}", f"{f1.value:.3f}", f"{len(texts):,}"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("--checkpoint", default=None)
    parser.add_argument("--index", type=Path, default=Path("indexes/minilm"))
    parser.add_argument("-k", type=int, default=5)
    parser.add_argument("--limit", type=int, default=1000)
    parser.add_argument("--gold-only", action="store_true", help="without retrieval by MiniLM and BM25")
    options = parser.parse_args()
    quieten()
    dev = packed(options.data / "squad_dev.jsonl", options.data / "dev.jsonl")
    examples = sample([e for e in read_examples(dev) if e.positive_ids], options.limit, seed=1)
    generator = open_generator(options.checkpoint).eval()
    index = minilm_index(packed(options.data / "passages.tsv"), options.index)
    start = time.process_time()
    gold = RagSequence(GoldRetriever(index, {e.question: e.positive_ids for e in examples}), generator, 1)
    texts = [text for (text,) in answered(gold, examples, "reading gold passages")]
    rows = [row("gold passage", texts, examples)]
    seconds = {"gold": (time.process_time() - start) / len(examples)}
    if not options.gold_only:
        start = time.process_time()
        retriever = HybridRetriever.from_pretrained(NAME, index.folder, BM25.build, trainable=False)
        both = list(
            answered(RagSequence(retriever, generator, options.k), examples, "answering", uniform=True)
        )
        seconds["RAG"] = (time.process_time() - start) / len(examples) / 2
        names = (f"RAG-Sequence, hybrid, K = {options.k}", "the same passages, uniform p(z|x)")
        rows += [row(name, [each[i] for each in both], examples) for i, name in enumerate(names)]
    Console().print("\n".join(table(["", "exact match", "95 % interval", "F1", "n"], rows)), soft_wrap=True)
    print(", ".join(f"{name}: {each:.3f} CPU seconds a question" for name, each in seconds.items()))


def minilm_index(passages: Path, folder: Path) -> Index:
    """The index in `folder`, made first where there is none."""
    return Index.build(folder, passages, open_passage_encoder(NAME), batch_size=16)


if __name__ == "__main__":
    with mistakes_in_one_sentence():
        main()

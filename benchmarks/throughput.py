"""Training, embedding and exact search on an accelerator, beside its limits: python -m benchmarks.throughput

    training     BART-large and a BERT-base question encoder, bfloat16, K = 5 and 10, the batch that fills the card:
                 examples a second, model FLOP utilisation, peak memory
    embedding    passages a second of a BERT-base encoder, beside what its matrix products alone would allow
    search       exact search over as many vectors of 768 numbers in bfloat16 as fit, beside the memory's bandwidth

Model FLOP are those of one pass over real tokens, three times for training; what is computed again in the backward
pass does not count. Limits are measured on the same machine: a large matrix product, a copy. With `--device cpu
--size tiny` everything runs in seconds, to see that it runs. Nothing here needs FAISS, datasets or Hydra.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
import transformers
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks import world
from benchmarks.machine import copy_bandwidth, describe, gemm_peak, timed
from rag import marginalize
from rag.files import write_json
from rag.generator import Generator, Ragged

DOCS = (5, 10)
DIM = 768
LEARNING_RATE = 1e-5


def generator_flop(size: world.Size, contexts: Tensor, targets: Tensor, docs: int) -> float:
    """FLOP of matrix products in one forward pass over contexts and targets of these lengths, attention's included."""
    d, layers = size.hidden, size.layers
    read = contexts.double()
    written = targets.double().repeat_interleave(docs)
    encoder = layers * (24 * d * d * read + 4 * d * read**2)
    keys = layers * 4 * d * d * read
    decoder = layers * (28 * d * d * written + 4 * d * written * (written + read))
    return float((encoder + keys + decoder + 2 * d * world.VOCABULARY * written).sum())


def encoder_flop(size: world.Size, lengths: Tensor) -> float:
    """The same of the question or the passage encoder."""
    d, lengths = size.question_hidden, lengths.double()
    return float((size.question_layers * (24 * d * d * lengths + 4 * d * lengths**2)).sum())


class Training:
    """One step of RAG-Token as rag/model.py takes it, over passages that were retrieved already."""

    def __init__(self, size: world.Size, docs: int, device: str, passages: int):
        self.size, self.docs, self.device = size, docs, device
        text = world.Text()
        found = text.passages(passages)
        self.questions, self.answers = text.questions(1024), text.answers(1024)
        corpus = [f"{title} / {body} //" for title, body in found] + self.questions + self.answers
        dtype = torch.bfloat16
        self.generator = world.generator(size, world.generator_tokenizer(corpus)).to(device)
        self.encoder: Any = world.question_encoder(size)
        self.encoder.to(device)
        self.question_tokenizer = world.question_tokenizer(corpus)
        self.passages = self.generator.tokenizer(
            [f"{title} / {body}" for title, body in found], add_special_tokens=False
        )["input_ids"]
        self.vectors = torch.randn(passages, size.question_hidden, device=device)
        weights = [*self.generator.parameters(), *self.encoder.parameters()]
        # Weights and Adam's moments in float32, products in bfloat16, as Lightning's bf16-mixed.
        self.optimizer = torch.optim.AdamW(weights, lr=LEARNING_RATE, fused=True)
        self.dtype = dtype

    def batch(self, questions: int) -> dict[str, Any]:
        generator: Generator = self.generator
        draw = np.random.default_rng(world.SEED)
        rows = draw.integers(len(self.passages), size=(questions, self.docs))
        text = [self.questions[i % len(self.questions)] for i in range(questions)]
        passages = Ragged.of([self.passages[row] for row in rows.reshape(-1)])
        ids, mask = generator.assemble(generator.tokenize_questions(text).repeat(self.docs), passages)
        answers = [self.answers[i % len(self.answers)] for i in range(questions)]
        labels, label_mask = generator.tokenize_targets(answers)
        tokens = self.question_tokenizer(text, padding=True, return_tensors="pt")
        flop = generator_flop(self.size, mask.sum(dim=1), label_mask.sum(dim=1), self.docs)
        flop += encoder_flop(self.size, tokens["attention_mask"].sum(dim=1))
        tensors = {
            "ids": ids,
            "mask": mask,
            "labels": labels,
            "label_mask": label_mask,
            "question": tokens["input_ids"],
            "question_mask": tokens["attention_mask"],
            "rows": torch.from_numpy(rows),
        }
        return {name: value.to(self.device) for name, value in tensors.items()} | {"flop": 3 * flop}

    def step(self, batch: dict[str, Any]) -> Tensor:
        generator = self.generator
        with torch.autocast(self.device, dtype=self.dtype):
            queries = self.encoder(batch["question"], attention_mask=batch["question_mask"]).pooler_output
            scores = torch.einsum("bd,bkd->bk", queries.float(), self.vectors[batch["rows"]])
            states = generator.encode(batch["ids"], batch["mask"])
            labels = batch["labels"].repeat_interleave(self.docs, dim=0)
            tokens, _ = generator.token_logprobs(states, batch["mask"], labels)
        doc_logprobs = marginalize.doc_logprobs(scores)
        tokens = tokens.unflatten(0, (-1, self.docs))
        loss = -marginalize.token_logprob(doc_logprobs, tokens, batch["label_mask"]).mean()
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.detach()

    def largest_batch(self, at_most: int) -> int:
        """The most questions, of 1, 2, 4, … and three quarters of these, that a step has memory for."""
        fits = 0
        for questions in sorted({2**n for n in range(11)} | {3 * 2**n for n in range(9)}):
            if questions > at_most:
                break
            try:
                self.step(self.batch(questions))
            except torch.OutOfMemoryError:
                self.optimizer.zero_grad()
                torch.cuda.empty_cache()
                break
            fits = questions
        return fits

    def measure(self, peak: float, repeats: int, at_most: int) -> dict[str, Any]:
        questions = self.largest_batch(at_most)
        if questions == 0:
            raise SystemExit(f"not even one question with {self.docs} passages fits this device")
        batch = self.batch(questions)
        if self.device == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        seconds = min(timed(lambda: self.step(batch), self.device) for _ in range(repeats + 1))
        return {
            "what": "training",
            "K": self.docs,
            "B": questions,
            "examples_per_second": questions / seconds,
            "flop_utilisation": batch["flop"] / seconds / peak,
            "peak_bytes": torch.cuda.max_memory_allocated() if self.device == "cuda" else None,
        }


def embedding(
    size: world.Size, device: str, peak: float, passages: int, batch_size: int, repeats: int
) -> dict[str, Any]:
    """Passages a second through the passage encoder, from tokens to vectors, those of like length together."""
    text = world.Text()
    pairs = text.passages(passages)
    tokenizer = world.question_tokenizer([f"{title} {body}" for title, body in pairs])
    torch.manual_seed(world.SEED)
    encoder: Any = world.passage_encoder(size)
    encoder.to(device)
    rows = tokenizer([title for title, _ in pairs], [body for _, body in pairs])["input_ids"]
    rows.sort(key=len)
    batches = []
    for start in range(0, len(rows), batch_size):
        some = tokenizer.pad({"input_ids": rows[start : start + batch_size]}, return_tensors="pt")
        batches.append({name: some[name].to(device) for name in ("input_ids", "attention_mask")})

    @torch.inference_mode()
    def run() -> None:
        with torch.autocast(device, dtype=torch.bfloat16):
            for batch in batches:
                encoder(**batch)

    run()
    seconds = min(timed(run, device) for _ in range(repeats))
    flop = encoder_flop(size, torch.tensor([len(row) for row in rows]))
    return {
        "what": "embedding",
        "passages_per_second": passages / seconds,
        "limit_passages_per_second": passages * peak / flop,
        "of_limit": flop / peak / seconds,
    }


def search_in_blocks(vectors: Tensor, queries: Tensor, k: int, block: int = 1 << 20) -> tuple[Tensor, Tensor]:
    """The k largest inner products of each query with all vectors, and their rows, best first."""
    scores = queries.new_full((len(queries), k), -torch.inf, dtype=torch.float32)
    rows = torch.full((len(queries), k), -1, dtype=torch.long, device=queries.device)
    for start in range(0, len(vectors), block):
        found, where = (
            (queries @ vectors[start : start + block].T).float().topk(min(k, block, len(vectors) - start))
        )
        scores, order = torch.cat([scores, found], dim=1).topk(k)
        rows = torch.cat([rows, where + start], dim=1).gather(1, order)
    return scores, rows


def exact_search(
    device: str,
    bandwidth: float,
    repeats: int,
    vectors: int | None = None,
    search: Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]] = search_in_blocks,
) -> list[dict[str, Any]]:
    """Queries a second over as many vectors as fit; `search` may be any that takes vectors, queries and K."""
    if vectors is None:
        free, _ = torch.cuda.mem_get_info()
        vectors = int(0.8 * free) // (2 * DIM)
    stored = torch.empty(vectors, DIM, dtype=torch.bfloat16, device=device)
    for some in stored.split(1 << 20):
        some.normal_()
    found = []
    for queries in (1, 16, 64):
        asked = torch.randn(queries, DIM, device=device, dtype=torch.bfloat16)
        search(stored, asked, 100)
        seconds = min(timed(lambda asked=asked: search(stored, asked, 100), device) for _ in range(repeats))
        found.append(
            {
                "what": "search",
                "vectors": vectors,
                "queries": queries,
                "seconds": seconds,
                "of_bandwidth": stored.numel() * 2 / seconds / bandwidth,
            }
        )
    return found


def run(
    size: str, device: str, repeats: int, at_most: int, passages: int, vectors: int | None
) -> dict[str, Any]:
    """All three, and the limits they are held against."""
    dtype = torch.bfloat16
    n = 8192 if device == "cuda" else 256
    peak = gemm_peak(n, 10 if device == "cuda" else 2, device, dtype)
    bandwidth = copy_bandwidth(device)
    figures: list[dict[str, Any]] = []

    def add(*new: dict[str, Any]) -> None:
        figures.extend(new)
        for each in new:
            print(json.dumps(each), file=sys.stderr, flush=True)
        if device == "cuda":
            torch.cuda.empty_cache()

    for docs in DOCS:
        add(Training(world.SIZES[size], docs, device, passages).measure(peak, repeats, at_most))
    add(embedding(world.SIZES[size], device, peak, passages, 256, repeats))
    add(*exact_search(device, bandwidth, repeats, vectors))
    return {
        "machine": describe(),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "size": size,
        "product_flop_per_second": peak,
        "copy_bytes_per_second": bandwidth,
        "figures": figures,
    }


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.throughput", description=(__doc__ or "").split(":")[0]
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--size", default="large", choices=list(world.SIZES))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--batch-at-most", type=int, default=1024)
    parser.add_argument("--passages", type=int, default=8192)
    parser.add_argument("--vectors", type=int, help="for search; as many as fit where left out")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    asked = parser.parse_args(given)
    if asked.device == "cuda" and not torch.cuda.is_available():
        parser.error(
            "--device cuda: this machine has no such device; --device cpu --size tiny shows that it runs"
        )
    vectors = asked.vectors if asked.device == "cuda" or asked.vectors else 10_000
    transformers.logging.set_verbosity_error()
    result = run(asked.size, asked.device, asked.repeats, asked.batch_at_most, asked.passages, vectors)
    shown = Table("what", "settings", "figures", title=result["machine"])
    for one in result["figures"]:
        settings = {name: value for name, value in one.items() if name in ("K", "B", "vectors", "queries")}
        figures = {name: value for name, value in one.items() if name not in settings and name != "what"}
        shown.add_row(
            one["what"],
            ", ".join(f"{name} {value:,}" for name, value in settings.items()),
            ", ".join(f"{name} {value:,.3g}" for name, value in figures.items() if value is not None),
        )
    Console(width=120).print(shown)
    if asked.json:
        write_json(asked.json, result)


if __name__ == "__main__":
    main()

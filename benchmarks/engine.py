"""A Milvus engine measured: python -m benchmarks.engine [--sizes 5000,10000,20000] [--dim 768] [--kinds FLAT,HNSW]
[--uri URI] [--json FILE]

The parts of docs/scale.md's arithmetic. Vectors of N passages and their texts (600 bytes each) go into a collection as
build_index.py puts them there; the same queries are asked of it and of a flat FAISS index over the same shards.

    rows_s           rows a second, as they are written in batches, texts and all; row_cpu_ms: CPU milliseconds of one
    settle_s         until they are on disk, indexed and loaded
    disk_mb          of the file, where it is one of milvus-lite's
    query_ms         one question of 64 at a time, K = 50; query_cpu_ms: the same in CPU time; faiss_ms: FAISS's
    one_ms           one question alone
    vectors_s        true vectors fetched a second, 64 questions × K = 5 at a time; shards_s: from the mapped shards
    passages_s       passages fetched a second, in the same slices
    same             the share of the 50 best that are those of the flat index

CPU time is that of this process and, of a file, of the server that it is read through: on a machine that does much else
it says more than the clock. Without --uri: a file of milvus-lite in a temporary folder.
"""

import argparse
import json
import os
import resource
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.machine import describe
from rag.files import hidden_beside, write_json
from rag.index.build import build
from rag.index.embed import embed
from rag.index.folder import Index
from rag.index.milvus_collection import MESSAGE, Collection
from rag.index.milvus_fill import fill
from rag.index.milvus_stores import EnginePassages
from rag.index.milvus_type import MilvusType, beside
from rag.index.passage import Passage
from rag.index.passages import PassageStore
from rag.index.vectors import EncoderInfo

QUESTIONS, K, DOCS, REWRITTEN = 64, 50, 5, 4_000
TEXT = "word " * 120


def cpu(server: int | None) -> float:
    """CPU seconds of this process and of a server so far."""
    seconds = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
    if server is not None:
        fields = Path(f"/proc/{server}/stat").read_text().rpartition(")")[2].split()
        seconds += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return seconds


def measured(call: Callable[[], Any], server: int | None, repeats: int = 3) -> tuple[float, float]:
    """Seconds by the clock and of CPU, the best of some."""
    call()
    found = []
    for _ in range(repeats):
        began, used = time.perf_counter(), cpu(server)
        call()
        found.append((time.perf_counter() - began, cpu(server) - used))
    return min(wall for wall, _ in found), min(used for _, used in found)


def rewritten(
    index: Index, vectors: np.ndarray, passages: list[Passage], server: int | None
) -> tuple[float, float]:
    """Seconds, by the clock and of CPU, of writing REWRITTEN rows into a collection beside the index's."""
    kept = index.collection
    other = Collection(kept.connection, f"{kept.name}_again", REWRITTEN, kept.d, kept.kind, {}, True)
    other.create(MilvusType(kind=kept.kind))
    began, used = time.perf_counter(), cpu(server)
    step = max(1, MESSAGE // (4 * kept.d + len(TEXT)))
    for start in range(0, REWRITTEN, step):
        part = slice(start, min(start + step, REWRITTEN))
        other.put(start, vectors[part], passages[part], False)
    took = time.perf_counter() - began, cpu(server) - used
    other.drop()
    return took


def row(folder: Path, uri: str | None, kind: str, count: int, dim: int) -> dict[str, Any]:
    """Everything about one collection."""
    random = np.random.default_rng(0)
    whole = random.standard_normal((count, dim), np.float32)
    passages = [Passage(str(n), f"title {n % 100}", TEXT) for n in range(count)]
    store = PassageStore.write(passages, folder / "flat/passages")
    info = EncoderInfo("random", "none", "none")
    embed(
        store,
        lambda batch: whole[[int(p.id) for p in batch]],
        folder / "flat",
        info,
        10_000,
        show_progress=False,
    )
    build(folder / "flat", show_progress=False)
    flat = Index.open(folder / "flat")
    shutil.copytree(
        folder / "flat", folder / "engine", ignore=shutil.ignore_patterns("index.faiss", "manifest.json")
    )
    manifest = fill(folder / "engine", MilvusType(uri, kind=kind), show_progress=False)
    index = Index.open(folder / "engine")
    file = beside(folder / "engine")
    server = None if uri else json.loads(hidden_beside(file, "server").read_text())["process"]
    queries = random.standard_normal((QUESTIONS, dim), np.float32)
    rows = random.integers(0, count, (QUESTIONS, DOCS))
    texts = [np.unique(random.integers(0, count, QUESTIONS * DOCS)).tolist() for _ in range(4)]
    filled, filled_cpu = rewritten(index, whole, passages, server)
    (asked, asked_cpu), (by_faiss, _) = (
        measured(lambda each=each: each.search(queries, K), server) for each in (index, flat)
    )
    one, _ = measured(lambda: index.search(queries[:1], K), server)
    fetched, _ = measured(lambda: index.collection.fetch(rows.reshape(-1)), server)
    mapped, _ = measured(lambda: flat.vectors(rows), server)
    engine_passages = EnginePassages(folder / "engine", index.collection, "")
    began = time.perf_counter()
    read = sum(len(engine_passages.of(each)) for each in texts)
    reading = time.perf_counter() - began
    found, best = index.search(queries, K)[1], flat.search(queries, K)[1]
    return {
        "kind": kind,
        "N": count,
        "D": dim,
        "rows_s": round(REWRITTEN / filled),
        "row_cpu_ms": round(filled_cpu / REWRITTEN * 1e3, 3),
        "settle_s": manifest.seconds["settle"],
        "disk_mb": round(sum(f.stat().st_size for f in file.rglob("*") if f.is_file()) / 1e6, 1)
        if server
        else None,
        "query_ms": round(asked / QUESTIONS * 1e3, 3),
        "query_cpu_ms": round(asked_cpu / QUESTIONS * 1e3, 3),
        "faiss_ms": round(by_faiss / QUESTIONS * 1e3, 3),
        "one_ms": round(one * 1e3, 2),
        "vectors_s": round(rows.size / fetched),
        "shards_s": round(rows.size / mapped),
        "passages_s": round(read / reading),
        "same": round(
            float(np.mean([len(set(a) & set(b)) / K for a, b in zip(found, best, strict=True)])), 4
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.engine", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--sizes", default="5000,10000,20000")
    parser.add_argument("--dim", type=int, default=768)
    parser.add_argument("--kinds", default="FLAT")
    parser.add_argument("--uri")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    rows = []
    for kind in given.kinds.split(","):
        for count in map(int, given.sizes.split(",")):
            with tempfile.TemporaryDirectory(prefix="rag-engine-") as place:
                rows.append(row(Path(place), given.uri, kind, count, given.dim))
            if given.json:
                write_json(given.json, {"machine": describe(), "rows": rows})
    table = Table(*rows[0], title=describe())
    for each in rows:
        table.add_row(*map(str, each.values()))
    Console(width=220).print(table)


if __name__ == "__main__":
    main()

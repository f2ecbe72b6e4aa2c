"""Every type of index over a million vectors: python -m benchmarks.index --json FILE [--vectors N] [--types a,b]

The types are those of configs/index, built by `rag.index.build.build` with their default parameters from shards of
float32 vectors, as build_index.py does. Each build, and each opening and searching, is a process of its own.

The vectors are made, not embedded, but shaped like a text encoder's: 768 dimensions of which 64 carry topics and
what differs within them, with variances that fall as 1/i; a mean common to all; lengths of 10 ± 1; isotropic noise of
length 2. 4,000 topics for a million vectors, of uneven size. Queries are of the same distribution and held out: 200
choose the search parameters while the index is built and 200 measure its manifest's recall; 200 others measure it
afterwards.

    build_s               train, fill, tune, measure, write and hash, as `build` does
    build_cpu_s           the same in CPU seconds of all threads, which other work on the machine hardly changes with
                          OMP_NUM_THREADS=1 (threads that wait for one another spin)
    build_peak_mb         the most anonymous memory (RssAnon, looked at every 10 ms) while building, over what the
                          process held before with its libraries loaded
    build_rss_mb          the same of all resident memory, mapped file pages included, which the system takes back
                          at will (VmHWM, exact)
    file_mb               index.faiss
    open_ms               `Index.open`, the file being in the system's cache
    anon_mb_after_query   anonymous memory (RssAnon) that opening and one query added
    ms_per_query          one query at a time, K = 50, re-ranking included
    cpu_ms_per_query      the same in CPU time
    recall_at_50          of exact search's 50 best, those found; `recall_unrefined` without re-ranking

A megabyte is 10⁶ bytes. Rows are written as soon as a type is done; the same command goes on with the types that the
file lacks. hnsw_sq8, the paper's, takes hours for a million vectors on two cores: without --uncapped it gets 200,000.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import yaml
from rich.console import Console
from rich.table import Table

from rag.errors import UserError
from rag.files import read_json, write_aside, write_json
from rag.index.build import build
from rag.index.embed import embed
from rag.index.faiss_types import IndexType
from rag.index.folder import Index
from rag.index.passage import Passage
from rag.index.passages import PassageStore
from rag.index.vectors import EncoderInfo, exact_search, open_vectors

PROJECT = Path(__file__).resolve().parents[1]
TYPES = ("flat", "sq8", "sqfp16", "ivf_sq8", "ivf_pq", "ivf_rabitq", "hnsw", "hnsw_sq8")
AT_MOST = {"hnsw_sq8": 200_000}
TUNING, TESTING, K = 400, 200, 50
LATENT, VECTORS_PER_TOPIC, SPREAD, NOISE = 64, 250, 0.6, 2.0
BLOCK = 16_384


class Clustered:
    """The distribution that vectors and queries are drawn from; a block is a function of its number."""

    def __init__(self, vectors: int, dim: int, seed: int = 0):
        random = np.random.default_rng([seed, dim])
        latent = min(LATENT, dim)
        self.deviation = ((1 + np.arange(latent)) ** -0.5).astype(np.float32)
        self.axes = np.linalg.qr(random.standard_normal((dim, latent)))[0].T.astype(np.float32)
        mean = random.standard_normal(dim)
        self.mean = (6 * mean / np.linalg.norm(mean)).astype(np.float32)
        topics = max(2, vectors // VECTORS_PER_TOPIC)
        self.topics = random.standard_normal((topics, latent), np.float32) * self.deviation
        self.share = random.dirichlet(np.ones(topics))
        self.scale = np.float32(8 / ((1 + SPREAD**2) * (self.deviation**2).sum()) ** 0.5)
        self.seed = seed

    def block(self, number: int, count: int) -> np.ndarray:
        random = np.random.default_rng([self.seed, 1, number])
        topic = random.choice(len(self.topics), count, p=self.share)
        within = SPREAD * self.deviation * random.standard_normal((count, len(self.deviation)), np.float32)
        vectors = self.scale * (self.topics[topic] + within) @ self.axes + self.mean
        dim = vectors.shape[1]
        return vectors + random.standard_normal((count, dim), np.float32) * np.float32(NOISE / dim**0.5)


# ---------------------------------------------------------------------------------- steps, each in its own process


def make(folder: Path, vectors: int, dim: int) -> dict[str, Any]:
    """Passages, vectors, queries and what exact search finds for them; goes on after an interruption."""
    source = Clustered(vectors, dim)
    encoder = EncoderInfo("benchmarks.index", f"clustered-{vectors}-{dim}", "none")
    if (folder / "passages" / "store.json").exists():
        store = PassageStore.open(folder / "passages")
    else:
        passages = (Passage(str(i), "", f"passage {i:09d}") for i in range(vectors))
        store = PassageStore.write(passages, folder / "passages", show_progress=True)

    def encode(passages: list[Passage]) -> np.ndarray:
        return source.block(int(passages[0].id), len(passages))

    embed(store, encode, folder, encoder, batch_size=BLOCK)
    if not (folder / "truth.npy").exists():
        queries = source.block(vectors, TUNING + TESTING)
        _, rows = exact_search(open_vectors(folder, store)[1], queries[TUNING:], min(K, vectors))
        for name, array in (("queries", queries), ("truth", rows)):
            with write_aside(folder / f"{name}.npy") as aside, open(aside, "wb") as file:
                np.save(file, array)
    return {}


def build_type(folder: Path, name: str) -> dict[str, Any]:
    queries = np.load(folder / "queries.npy")[:TUNING]
    anonymous, resident = memory("RssAnon"), memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    start, cpu = time.perf_counter(), time.process_time()
    with highest("RssAnon") as peak:
        manifest = build(folder, index_type(name), queries)
    return {
        "build_s": round(time.perf_counter() - start, 1),
        "build_cpu_s": round(time.process_time() - cpu, 1),
        "build_peak_mb": round(peak[0] - anonymous, 1),
        "build_rss_mb": round(memory("VmHWM") - resident, 1),
        "file_mb": round((folder / "index.faiss").stat().st_size / 1e6, 1),
        "factory": manifest.factory,
        "search": manifest.search,
        "seconds": manifest.seconds,
    }


def query_type(folder: Path) -> dict[str, Any]:
    queries = np.load(folder / "queries.npy")[TUNING:]
    truth = np.load(folder / "truth.npy")
    k = truth.shape[1]
    before = memory("RssAnon")
    start = time.perf_counter()
    index = Index.open(folder)
    open_ms = (time.perf_counter() - start) * 1000
    index.search(queries[:1], k)
    anonymous = memory("RssAnon") - before
    seconds: list[float] = []
    cpu = time.process_time()
    for query in queries[1:51]:
        start = time.perf_counter()
        index.search(query[None], k)
        seconds.append(time.perf_counter() - start)
        if sum(seconds) > 10:
            break
    cpu_ms = (time.process_time() - cpu) / len(seconds) * 1000

    def recall(refine: int | None) -> float:
        retrieved = np.concatenate(
            [index.search(queries[i : i + 50], k, refine)[1] for i in range(0, len(queries), 50)]
        )
        return float(np.mean([len(np.intersect1d(*pair)) / k for pair in zip(retrieved, truth, strict=True)]))

    refined = recall(None)
    return {
        "open_ms": round(open_ms, 2),
        "anon_mb_after_query": round(anonymous, 2),
        "ms_per_query": round(sum(seconds) / len(seconds) * 1000, 2),
        "cpu_ms_per_query": round(cpu_ms, 2),
        "recall_at_50": round(refined, 4),
        "recall_unrefined": round(recall(1) if index.manifest.search["refine"] > 1 else refined, 4),
        "threads": faiss.omp_get_max_threads(),
    }


def index_type(name: str) -> IndexType:
    """The type of configs/index/<name>.yaml."""
    node = yaml.safe_load((PROJECT / "configs" / "index" / f"{name}.yaml").read_text(encoding="utf-8"))[
        "type"
    ]
    return IndexType(**{key: value for key, value in node.items() if key != "_target_"})


def memory(what: str) -> float:
    """MB of this process: VmRSS, VmHWM (its peak) or RssAnon."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{what}:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise UserError(f"this system does not tell {what}: the benchmark needs Linux")


@contextmanager
def highest(what: str) -> Iterator[list[float]]:
    """A list whose one element is the most of `what` that was seen in the block."""
    peak, done = [memory(what)], threading.Event()

    def look() -> None:
        while not done.wait(0.01):
            peak[0] = max(peak[0], memory(what))

    looking = threading.Thread(target=look)
    looking.start()
    try:
        yield peak
    finally:
        done.set()
        looking.join()


# ---------------------------------------------------------------------------------- the whole


def run_step(*arguments: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.index", "--step", *arguments]
    step = subprocess.run(command, cwd=PROJECT, stdout=subprocess.PIPE, text=True)
    if step.returncode:
        raise UserError(f"the step {' '.join(arguments)} failed with exit code {step.returncode}")
    return json.loads(step.stdout.splitlines()[-1])


def machine() -> str:
    gigabytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    return f"{len(os.sched_getaffinity(0))} cores, {platform.machine()}, {gigabytes:.0f} GiB"


def commit() -> str:
    command = ["git", "-C", str(PROJECT), "describe", "--always", "--dirty", "--abbrev=12"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip() or "unknown"


def benchmark(
    file: Path, vectors: int, types: list[str], dim: int, folder: Path, uncapped: bool = False
) -> list[dict[str, Any]]:
    """Run what `file` lacks and return all its rows."""
    unknown = set(types) - set(TYPES)
    if unknown:
        raise UserError(f"there is no type {', '.join(sorted(unknown))}: --types takes {','.join(TYPES)}")
    rows: list[dict[str, Any]] = read_json(file, list) if file.exists() else []
    sizes = {name: vectors if uncapped else min(vectors, AT_MOST.get(name, vectors)) for name in types}
    done = {(row["type"], row["vectors"], row["dim"]) for row in rows}
    missing = [name for name in types if (name, sizes[name], dim) not in done]
    print(
        f"indexing {vectors:,} vectors of {dim} dimensions as {', '.join(missing) or 'nothing that is missing'}; "
        f"data in {folder}, results in {file}"
    )
    for name in missing:
        size_folder = folder / f"{sizes[name]}x{dim}"
        need, free = 3.2 * sizes[name] * dim * 4, shutil.disk_usage(nearest(folder)).free
        if not (size_folder / "truth.npy").exists() and free < need:
            raise UserError(
                f"{folder} has {free / 1e9:.1f} GB free and {need / 1e9:.1f} GB are needed: give another "
                "--folder, or fewer --vectors"
            )
        run_step("make", str(size_folder), str(sizes[name]), str(dim))
        print(f"{name}: building", file=sys.stderr)
        row = {"type": name, "vectors": sizes[name], "dim": dim}
        row |= run_step("build", str(size_folder), name) | run_step("query", str(size_folder))
        rows.append(row | {"machine": machine(), "commit": commit()})
        write_json(file, rows)
    return rows


def nearest(folder: Path) -> Path:
    return next(each for each in (folder, *folder.parents) if each.exists())


COLUMNS = (
    "type",
    "vectors",
    "build_s",
    "build_cpu_s",
    "build_peak_mb",
    "file_mb",
    "open_ms",
    "anon_mb_after_query",
    "ms_per_query",
    "cpu_ms_per_query",
    "recall_at_50",
    "recall_unrefined",
)


def show(rows: list[dict[str, Any]]) -> None:
    table = Table(*COLUMNS, "search")
    for row in rows:
        search = ", ".join(f"{name} {value}" for name, value in row["search"].items())
        values = [row[name] for name in COLUMNS]
        table.add_row(*(f"{v:,}" if isinstance(v, int | float) else v for v in values), search)
    Console(width=None if sys.stdout.isatty() else 160).print(table)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.index", description=(__doc__ or "").split(":")[0]
    )
    parser.add_argument(
        "--json", type=Path, help="where the rows go; types that are there already are skipped"
    )
    parser.add_argument("--vectors", type=int, default=1_000_000)
    parser.add_argument("--types", default=",".join(TYPES), help="default: %(default)s")
    parser.add_argument("--dim", type=int, default=768)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "rag_benchmark_index")
    parser.add_argument("--uncapped", action="store_true", help="hnsw_sq8 over all vectors too")
    parser.add_argument("--step", nargs="+", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.step:
        step, folder, *rest = given.step
        results = {
            "make": lambda: make(Path(folder), int(rest[0]), int(rest[1])),
            "build": lambda: build_type(Path(folder), rest[0]),
            "query": lambda: query_type(Path(folder)),
        }[step]()
        print(json.dumps(results))
        return
    if given.json is None:
        parser.error("say where the rows go: --json FILE")
    show(
        benchmark(given.json, given.vectors, given.types.split(","), given.dim, given.folder, given.uncapped)
    )
    print(
        f"rows in {given.json}; the data stay in {given.folder} for the next run: delete them when you are done"
    )


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted: the same command goes on with the types that are missing", file=sys.stderr)
        sys.exit(130)

"""Build the index of a corpus, offline and once: python build_index.py corpus.path=… passage_encoder=… key=value …"""

import os
import shutil
from pathlib import Path

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from rag.analysis.run_report import write_run_report
from rag.cli import plain, run_script
from rag.demo import ensure
from rag.encoders import PassageEncoder, QuestionEncoder
from rag.errors import UserError
from rag.estimate import Estimate, estimate
from rag.files import read_json, replace_folder
from rag.index import Index, Manifest, build
from rag.index_type import IndexType, filled_factory
from rag.passages import FORMATS, PassageStore, tokenizer_fingerprint
from rag.processes import processes, wait_for_all
from rag.runs import check_place
from rag.tasks.qa import read_examples
from rag.vectors import EncoderInfo, embed, prepare

USAGE = """
python build_index.py [experiment=NAME] [key=value …]

Reads a corpus, embeds its passages and builds a FAISS index over them, in the folder index.path. The same command
goes on after an interruption and does nothing when the index is already there.

  python build_index.py experiment=miniwiki/index_a
  python build_index.py corpus.path=my.tsv passage_encoder=outputs/…/passage_encoder index.path=indexes/mine
  python build_index.py … estimate=true                      disk, memory and hours, before anything is done
  python build_index.py … overwrite=true                     replace an index of another corpus, encoder or type
  torchrun --nproc-per-node=4 build_index.py …               four processes share the embedding
"""


def build_index(cfg: DictConfig) -> None:
    encoder = Path(cfg.passage_encoder)
    if cfg.needs and not encoder.exists() and encoder.is_relative_to(cfg.paths.demo):
        ensure(plain(cfg.needs), Path(cfg.paths.demo), Path(cfg.paths.data), cfg.seed)
    folder = Path(cfg.index.path)
    kind = instantiate(cfg.index.type)
    if not Path(cfg.corpus.path).exists():
        raise UserError(f"{cfg.corpus.path} does not exist: give corpus.path={FORMATS}")
    check_place(folder, "index.path")
    encoder = PassageEncoder.from_pretrained(cfg.passage_encoder).eval()
    if torch.cuda.is_available():
        encoder.cuda(int(os.environ.get("LOCAL_RANK", "0")))
    if cfg.estimate:
        count = int(os.environ.get("WORLD_SIZE", "1"))
        costs = (cfg.batch_size, count, cfg.passages_per_second)
        show_estimate(
            estimate(cfg.corpus.path, kind, encoder.dim, encoder.encode, *costs), cfg.corpus.path, folder
        )
        return
    info = EncoderInfo(cfg.passage_encoder, encoder.fingerprint(), tokenizer_fingerprint(encoder.tokenizer))
    queries = None
    if cfg.recall_questions is not None:
        asker = QuestionEncoder.from_pretrained(cfg.question_encoder).eval()
        questions = [example.question for example in read_examples(cfg.recall_questions, limit=200)]
        with torch.inference_mode():
            queries = asker(**asker.tokenize(questions)).float().numpy()
    work = folder
    if (folder / "manifest.json").exists():
        found = difference(folder, cfg.corpus.path, info)
        other_type = None if found else type_difference(Index.open(folder).manifest, kind)
        if found is None and other_type is None and cfg.overwrite is not True:
            show(Index.open(folder), f"{folder} is there already")
            return
        if (found or other_type) and not cfg.overwrite:
            raise UserError(
                f"{folder} holds {found or other_type}: choose another index.path, or replace it with overwrite=true"
            )
        if (
            other_type is None
        ):  # the old index stays until the new one is complete; for another type it has the vectors
            work = folder.with_name(f".{folder.name}.new")
    with processes() as (number, count):
        if number == 0:
            print(
                f"building an index ({kind.factory}) of {cfg.corpus.path} by {cfg.passage_encoder} in {folder}"
            )
            if cfg.overwrite and begun_otherwise(work, cfg.corpus.path, info):
                shutil.rmtree(work)
            prepare(cfg.corpus.path, work)
        wait_for_all()
        store = PassageStore.open(work / "passages")
        sizes = (cfg.shard_size, cfg.batch_size)
        embed(store, encoder.encode, work, info, *sizes, number, count, show_progress=number == 0)
        wait_for_all()
        if number == 0:
            build(work, kind, queries)
            if work != folder:
                replace_folder(work, folder)
            write_run_report(folder)
            show(Index.open(folder), f"index and report.md in {folder}")


def difference(folder: Path, corpus: str, encoder: EncoderInfo) -> str | None:
    """In what the vectors of a finished index are not the ones asked for; None if they are."""
    try:
        manifest = Index.open(folder).manifest
    except UserError as error:
        return f"a damaged index ({error})"
    if manifest.encoder.weights != encoder.weights:
        return f"vectors of another encoder ({manifest.encoder.name})"
    try:
        PassageStore.prepare(corpus, folder / "passages")
    except UserError:
        return f"another corpus ({manifest.corpus.path})"
    return None


def type_difference(manifest: Manifest, kind: IndexType) -> str | None:
    """In what a finished index is not of the type asked for; None if it is."""
    factory = filled_factory(kind, manifest.corpus.passages, manifest.dim)
    if manifest.factory != factory:
        return f"an index of type {manifest.factory} instead of {factory}"
    for name, found in manifest.search.items():
        wanted = getattr(kind, name)
        if wanted is not None and wanted != found:
            return f"an index with {name}={found} instead of {wanted}"
    return None


def begun_otherwise(folder: Path, corpus: str, encoder: EncoderInfo) -> bool:
    """Whether an unfinished build in `folder` is of another corpus or encoder."""
    plan, store = folder / "vectors" / "plan.json", folder / "passages"
    if plan.exists() and read_json(plan)["encoder"]["weights"] != encoder.weights:
        return True
    try:
        if (store / "store.json").exists():
            PassageStore.prepare(corpus, store)
    except UserError:
        return True
    return False


def show_estimate(found: Estimate, corpus: str, folder: Path) -> None:
    table = Table("what", "estimate", title=f"an index of {corpus} in {folder}, before anything is done")
    table.add_row("passages", f"{'' if found.counted else 'about '}{found.passages:,}")
    table.add_row("type", found.factory)
    for name in ("passages", "vectors", "index"):
        table.add_row(f"disk: {name}", f"{getattr(found, f'disk_{name}') / 1e9:,.2f} GB")
    table.add_row("memory: building", f"{found.memory_build / 2**30:,.2f} GiB")
    table.add_row("memory: searching, all in memory", f"{found.memory_all / 2**30:,.2f} GiB")
    table.add_row("memory: searching, vectors on disk", f"{found.memory_least / 2**30:,.2f} GiB")
    table.add_row("hours: embedding", f"{found.seconds_embedding / 3600:,.2f}")
    table.add_row("hours: index", f"{found.seconds_index / 3600:,.2f}")
    Console().print(table)
    place = next(each for each in (folder.absolute(), *folder.absolute().parents) if each.exists())
    if (free := shutil.disk_usage(place).free) < found.disk:
        print(
            f"{place} has {free / 1e9:,.1f} GB free, too little for the {found.disk / 1e9:,.1f} GB of this index"
        )


def show(index: Index, title: str) -> None:
    manifest = index.manifest
    table = Table("figure", "value", title=title)
    table.add_row("passages", f"{len(index):,}")
    table.add_row("dimensions", str(index.dim))
    table.add_row("type", manifest.factory)
    table.add_row("encoder", manifest.encoder.name)
    for k, value in manifest.recall.items():
        table.add_row(f"recall@{k} against exact search", f"{value:.3f}")
    table.add_row("milliseconds a query", f"{manifest.ms_per_query:.2f}")
    table.add_row("size on disk", f"{sum(f['bytes'] for f in manifest.files.values()) / 1e6:,.1f} MB")
    Console().print(table)


if __name__ == "__main__":
    run_script("build_index", USAGE, build_index)

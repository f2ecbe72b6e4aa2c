"""What `rag.commands.build_index` does once its configuration is composed: embed a corpus and build its index."""

import os
import re
import shutil
from pathlib import Path

from hydra.utils import instantiate
from omegaconf import DictConfig
from rich.table import Table

from rag.commands.changing import bring_up_to_date, change, list_documents
from rag.commands.corpus import check_corpus, makes_the_encoder
from rag.commands.index_parts import held_out_questions, open_encoder, say_cut, show
from rag.compose import plain, reading
from rag.demo import ensure
from rag.encoders.precisions import chosen_precision
from rag.encoders.protocol import AnyPassageEncoder
from rag.encoders.reduced import reduced
from rag.errors import UserError
from rag.index.editions import put_back
from rag.index.estimate import Estimate, estimate
from rag.index.faiss_types import IndexType
from rag.index.folder import Index
from rag.index.from_corpus import embed_part
from rag.index.manifest import Manifest
from rag.index.milvus_connection import Connection, is_file
from rag.index.milvus_type import MilvusType
from rag.index.ready_index import ReadyIndex
from rag.index.ready_vectors import ReadyVectors
from rag.processes import processes
from rag.reports.finished import complete_index
from rag.reports.run_report import write_run_report
from rag.runs import check_place
from rag.safe_text import say
from rag.terminal import Terminal


def build_index(cfg: DictConfig) -> Path:
    """Build, change or estimate the index that the configuration describes; its folder."""
    folder = Path(cfg.index.path)
    put_back(folder)
    if cfg.verify:
        index = Index.open(folder)
        size = sum(file["bytes"] for file in index.manifest.files.values())
        print(
            f"reading the {len(index.manifest.files):,} files of {folder} ({size / 1e6:,.1f} MB)", flush=True
        )
        index.verify()
        print(f"all {len(index.manifest.files):,} files of {folder} are as they were written")
        return folder
    if cfg.list:
        list_documents(folder)
        return folder
    check_precision(cfg, folder)
    if cfg.sync and (folder / "manifest.json").exists():
        bring_up_to_date(cfg, folder)
        return folder
    if cfg.add is not None or cfg.remove is not None:
        change(cfg, folder)
        return folder
    if makes_the_encoder(cfg):
        ensure(plain(cfg.needs), Path(cfg.paths.demo), Path(cfg.paths.data), cfg.seed)
    index_type = instantiate(cfg.index.type)
    check_corpus(cfg.corpus.path)
    check_place(folder, "index.path")
    if isinstance(index_type, MilvusType) and not is_file(index_type.place(folder)) and not cfg.estimate:
        engine = Connection(index_type.place(folder))
        engine.call("list_collections")  # an engine that is not there is told before anything is embedded
        engine.close()
    given = cfg.corpus.get("vectors")
    vectors = None if given is None else ReadyVectors.find(plain(given))
    taken_over = vectors is not None or isinstance(index_type, ReadyIndex)
    optional = taken_over and not cfg.embed_missing and not cfg.estimate
    encoder = open_encoder(cfg.passage_encoder, instantiate(cfg.encoder), optional)
    if cfg.estimate:
        show_estimate(estimate_costs(cfg, encoder, index_type), cfg.corpus.path, folder)
        return folder
    if cfg.part is not None:
        embed_one_part(cfg, encoder, folder)
        return folder
    before = last_change(folder)
    with processes() as (number, count):
        index = Index.build(
            folder,
            cfg.corpus.path,
            reduced(encoder, bfloat16=cfg.bfloat16, int8=cfg.int8, openvino=cfg.openvino)
            or cfg.passage_encoder,
            index_type,
            vectors,
            embed_missing=cfg.embed_missing,
            queries=held_out_questions(cfg),
            reading=reading(cfg.corpus),
            shard_size=cfg.shard_size,
            batch_size=cfg.batch_size,
            overwrite=cfg.overwrite,
            process_index=number,
            process_count=count,
        )
    if encoder is not None:
        say_cut(encoder)
    if number == 0 and last_change(folder) == before:
        complete_index(folder)
        show(index, f"{folder} already exists")
    elif number == 0:
        write_run_report(folder)
        show(index, f"index and report.md in {folder}")
    return folder


def check_precision(cfg: DictConfig, folder: Path) -> None:
    """UserError where a precision is asked for that the vectors of a finished index, which stay, are not of."""
    asked = chosen_precision(bfloat16=cfg.bfloat16, int8=cfg.int8, openvino=cfg.openvino)
    if asked is None or cfg.overwrite is True or cfg.estimate or not (folder / "manifest.json").exists():
        return
    held = Manifest.read(folder / "manifest.json").encoder.precision
    if held != asked:
        how = "in the usual precision" if held is None else f"with {held}=true"
        raise UserError(
            f"{folder} holds vectors made {how}, which goes on: leave {asked}=true out, or build it anew with "
            "overwrite=true"
        )


def embed_one_part(cfg: DictConfig, encoder: AnyPassageEncoder | None, folder: Path) -> None:
    """part=N/M: as one of several that never meet, each perhaps of several processes that torchrun started."""
    given = re.fullmatch(r"(\d{1,6})/(\d{1,6})", str(cfg.part))
    if given is None or encoder is None:
        raise UserError(
            f"part={cfg.part} is none: give the number of this part and how many there are, as in part=0/16"
        )
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    number = int(given[1]) * processes + int(os.environ.get("RANK", "0"))
    done = embed_part(
        folder,
        cfg.corpus.path,
        reduced(encoder, bfloat16=cfg.bfloat16, int8=cfg.int8, openvino=cfg.openvino),
        number,
        int(given[2]) * processes,
        reading(cfg.corpus),
        cfg.shard_size,
        cfg.batch_size,
    )
    say(
        f"all vectors are in {folder}, {done:,} of them made here: the same command without part= builds the index"
    )


def last_change(folder: Path) -> int | None:
    """When a finished index was written, in nanoseconds; None where there is none."""
    manifest = folder / "manifest.json"
    return manifest.stat().st_mtime_ns if manifest.exists() else None


def estimate_costs(
    cfg: DictConfig, encoder: AnyPassageEncoder | None, index_type: IndexType | ReadyIndex | MilvusType
) -> Estimate:
    """Disk, memory and hours of the index that the configuration describes."""
    if encoder is None or isinstance(index_type, ReadyIndex):
        raise UserError(
            "the size of a FAISS file made elsewhere is known: estimate=true takes index=flat, sq8, …"
        )
    return estimate(
        cfg.corpus.path,
        index_type,
        encoder.dim,
        encoder.encode,
        cfg.batch_size,
        int(os.environ.get("WORLD_SIZE", "1")),
        cfg.passages_per_second,
        reading(cfg.corpus),
    )


def show_estimate(costs: Estimate, corpus: str, folder: Path) -> None:
    table = Table("what", "estimate", title=f"estimate for an index of {corpus} in {folder}")
    table.add_row("passages", f"{'' if costs.counted else 'about '}{costs.passages:,}")
    table.add_row("type", costs.factory)
    for name in ("passages", "vectors", "index"):
        table.add_row(f"disk: {name}", f"{getattr(costs, f'disk_{name}') / 1e9:,.2f} GB")
    table.add_row("memory: building", f"{costs.memory_build / 2**30:,.2f} GiB")
    table.add_row("memory: searching, all in memory", f"{costs.memory_all / 2**30:,.2f} GiB")
    table.add_row("memory: searching, vectors on disk", f"{costs.memory_least / 2**30:,.2f} GiB")
    table.add_row("hours: embedding", f"{costs.seconds_embedding / 3600:,.2f}")
    table.add_row("hours: index", f"{costs.seconds_index / 3600:,.2f}")
    Terminal().print(table)
    existing = next(each for each in (folder.absolute(), *folder.absolute().parents) if each.exists())
    wanted = costs.disk - (costs.disk_index if costs.elsewhere else 0)
    if (free := shutil.disk_usage(existing).free) < wanted:
        say(
            f"{existing} has {free / 1e9:,.1f} GB free, too little for the {wanted / 1e9:,.1f} GB of this index"
        )

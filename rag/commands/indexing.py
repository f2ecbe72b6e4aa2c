"""What `rag.commands.build_index` does once its configuration is composed: embed a corpus and build its index."""

import os
import shutil
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from rich.table import Table

from rag.commands.corpus import check_corpus, makes_the_encoder
from rag.compose import plain, reading
from rag.demo import ensure
from rag.encoders.mixed import InBfloat16
from rag.encoders.opening import open_passage_encoder, open_question_encoder
from rag.encoders.protocol import AnyPassageEncoder
from rag.encoders.settings import EncoderSettings
from rag.errors import UserError
from rag.index.editions import put_back, tidy
from rag.index.estimate import Estimate, estimate
from rag.index.faiss_types import IndexType
from rag.index.folder import Index
from rag.index.passage import counted
from rag.index.ready_index import ReadyIndex
from rag.index.ready_vectors import ReadyVectors
from rag.index.update import is_made, read_ids
from rag.processes import processes
from rag.reports.finished import complete_index
from rag.reports.run_report import write_run_report
from rag.runs import check_place
from rag.safe_text import say
from rag.tasks.qa import read_examples
from rag.terminal import Terminal
from rag.training.datamodule import sample


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
    if cfg.add is not None or cfg.remove is not None:
        change(cfg, folder)
        return folder
    if makes_the_encoder(cfg):
        ensure(plain(cfg.needs), Path(cfg.paths.demo), Path(cfg.paths.data), cfg.seed)
    index_type = instantiate(cfg.index.type)
    check_corpus(cfg.corpus.path)
    check_place(folder, "index.path")
    given = cfg.corpus.get("vectors")
    vectors = None if given is None else ReadyVectors.find(plain(given))
    taken_over = vectors is not None or isinstance(index_type, ReadyIndex)
    optional = taken_over and not cfg.embed_missing and not cfg.estimate
    encoder = open_encoder(cfg.passage_encoder, instantiate(cfg.encoder), optional)
    if cfg.estimate:
        show_estimate(estimate_costs(cfg, encoder, index_type), cfg.corpus.path, folder)
        return folder
    before = last_change(folder)
    encoding, split_words = reading(cfg.corpus)
    with processes() as (number, count):
        index = Index.build(
            folder,
            cfg.corpus.path,
            (InBfloat16(encoder) if encoder and cfg.bfloat16 else encoder) or cfg.passage_encoder,
            index_type,
            vectors,
            embed_missing=cfg.embed_missing,
            queries=held_out_questions(cfg),
            encoding=encoding,
            split_words=split_words,
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


def last_change(folder: Path) -> int | None:
    """When a finished index was written, in nanoseconds; None where there is none."""
    manifest = folder / "manifest.json"
    return manifest.stat().st_mtime_ns if manifest.exists() else None


def open_encoder(name: str, settings: EncoderSettings, optional: bool = False) -> AnyPassageEncoder | None:
    """The passage encoder, on a GPU if there is one; None where it may be missing and is."""
    try:
        encoder = open_passage_encoder(name, settings).eval()
    except UserError:
        if not optional:
            raise
        return None
    if torch.cuda.is_available():
        encoder.cuda(int(os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID", "0")))
    return encoder


def say_cut(encoder: AnyPassageEncoder) -> None:
    """How many of the passages that were embedded were too long for the encoder."""
    if encoder.cut:
        say(
            f"{counted(encoder.cut, 'passage')} of those embedded here ran over the passage encoder's "
            f"{encoder.max_length} tokens and was truncated; corpus.split_words=100 splits them"
        )


def held_out_questions(cfg: DictConfig) -> Any:
    """The vectors of 200 questions at random to measure recall with; None where none were given.

    At random, because files are often in the order of articles, and neighbouring questions are about one thing.
    """
    if cfg.recall_questions is None:
        return None
    asker = open_question_encoder(cfg.question_encoder, instantiate(cfg.encoder)).eval()
    questions = [example.question for example in sample(read_examples(cfg.recall_questions), 200)]
    with torch.inference_mode():
        return asker(**asker.tokenize(questions)).float().numpy()


def change(cfg: DictConfig, folder: Path) -> None:
    """Add passages to an index, remove some."""
    index = Index.open(folder)
    mine = index.manifest.encoder
    removed = [] if cfg.remove is None else read_ids(cfg.remove)
    encoding, split_words = reading(cfg.corpus)
    if is_made(index.passages, cfg.add, removed, (encoding, split_words)):
        tidy(folder)
        complete_index(folder)
        show(index, f"{folder} already is what this update makes of it")
        return
    encoder = None
    if cfg.add is not None:
        for name in dict.fromkeys([mine.name, cfg.passage_encoder]):
            encoder = open_encoder(name, instantiate(cfg.encoder), optional=True)
            if encoder is not None and encoder.describe().may_be(mine):
                break
        else:
            raise UserError(
                f"{folder} was embedded by {mine.name} (weights {mine.weights}), which is no longer available: give "
                "passage_encoder=… a copy of it"
            )
    parts = [f"adding {cfg.add}"] * (cfg.add is not None) + [f"removing {len(removed):,} passages"] * bool(
        removed
    )
    say(f"{' and '.join(parts)}: {folder} stays in place until its new edition is complete")
    index = index.update(
        cfg.add,
        removed,
        encoder,
        queries=held_out_questions(cfg),
        encoding=encoding,
        split_words=split_words,
        batch_size=cfg.batch_size,
    )
    if encoder is not None:
        say_cut(encoder)
    write_run_report(folder)
    show(index, f"index and report.md in {folder}")


def estimate_costs(
    cfg: DictConfig, encoder: AnyPassageEncoder | None, index_type: IndexType | ReadyIndex
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
        *reading(cfg.corpus),
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
    if (free := shutil.disk_usage(existing).free) < costs.disk:
        say(
            f"{existing} has {free / 1e9:,.1f} GB free, too little for the {costs.disk / 1e9:,.1f} GB of this index"
        )


def show(index: Index, title: str) -> None:
    manifest = index.manifest
    table = Table("what", "value", title=title)
    table.add_row("passages", f"{len(index):,}")
    table.add_row("dimensions", str(index.dim))
    table.add_row("type", manifest.factory)
    table.add_row("encoder", manifest.encoder.name)
    table.add_row("vectors", manifest.vectors)
    if not manifest.recall:
        table.add_row("recall against exact search", "unknown: there are no true vectors")
    for k, value in manifest.recall.items():
        table.add_row(f"recall@{k} against exact search", f"{value:.3f}")
    table.add_row("milliseconds per query", f"{manifest.ms_per_query:.2f}")
    for name, value in manifest.seconds.items():
        table.add_row(f"seconds to {name}", f"{value:,.1f}")
    table.add_row("size on disk", f"{sum(f['bytes'] for f in manifest.files.values()) / 1e6:,.1f} MB")
    Terminal().print(table)

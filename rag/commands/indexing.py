"""What `rag.commands.build_index` does once its configuration is composed: embed a corpus and build its index."""

import os
import shutil
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from rag.commands.corpus import check_corpus, makes_the_encoder
from rag.compose import plain, reading
from rag.demo import ensure
from rag.encoders.opening import describe_encoder, open_passage_encoder, open_question_encoder
from rag.encoders.protocol import AnyPassageEncoder
from rag.encoders.settings import EncoderSettings
from rag.errors import UserError
from rag.files import put_back, read_json, replace_folder
from rag.index.build import build
from rag.index.embed import embed, prepare
from rag.index.estimate import Estimate, estimate
from rag.index.faiss_types import IndexType, filled_factory
from rag.index.folder import Index, Manifest
from rag.index.passage import counted
from rag.index.passages import PassageStore
from rag.index.ready_index import ReadyIndex, adopt, factory_of
from rag.index.ready_vectors import MatchedVectors, ReadyVectors
from rag.index.update import read_ids, update
from rag.index.vectors import UNKNOWN, EncoderInfo
from rag.processes import processes, wait_for_all
from rag.reports.run_report import write_run_report
from rag.runs import check_place
from rag.tasks.qa import read_examples
from rag.training.datamodule import sample


def build_index(cfg: DictConfig) -> Path:
    """Build, change or estimate the index that the configuration describes; its folder."""
    folder = Path(cfg.index.path)
    put_back(folder)
    if cfg.add is not None or cfg.remove is not None:
        change(cfg, folder)
        return folder
    if makes_the_encoder(cfg):
        ensure(plain(cfg.needs), Path(cfg.paths.demo), Path(cfg.paths.data), cfg.seed)
    kind = instantiate(cfg.index.type)
    check_corpus(cfg.corpus.path)
    check_place(folder, "index.path")
    given = cfg.corpus.get("vectors")
    vectors = None if given is None else ReadyVectors.find(plain(given))
    taken_over = vectors is not None or isinstance(kind, ReadyIndex)
    encoder, info = open_encoder(
        cfg.passage_encoder,
        optional=taken_over and not cfg.embed_missing and not cfg.estimate,
        settings=instantiate(cfg.encoder),
    )
    if cfg.estimate:
        if encoder is None or isinstance(kind, ReadyIndex):
            raise UserError(
                "there is nothing to estimate for a FAISS file that is taken over: give index=flat, sq8, …"
            )
        count = int(os.environ.get("WORLD_SIZE", "1"))
        costs = (cfg.batch_size, count, cfg.passages_per_second)
        show_estimate(
            estimate(cfg.corpus.path, kind, encoder.dim, encoder.encode, *costs, *reading(cfg.corpus)),
            cfg.corpus.path,
            folder,
        )
        return folder
    queries = held_out_questions(cfg)
    work = folder
    if (folder / "manifest.json").exists():
        found = difference(folder, cfg.corpus, info)
        other_type = None if found else type_difference(Index.open(folder).manifest, kind)
        if found is None and other_type is None and cfg.overwrite is not True:
            show(Index.open(folder), f"{folder} is there already")
            return folder
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
            what = (
                f"taking over {kind.file}"
                if isinstance(kind, ReadyIndex)
                else f"building an index ({kind.factory})"
            )
            whose = f"vectors of {vectors.path}" if vectors is not None else cfg.passage_encoder
            print(f"{what} of {cfg.corpus.path} by {whose} in {folder}")
            if cfg.overwrite and begun_otherwise(work, cfg.corpus, info):
                shutil.rmtree(work)
            prepare(cfg.corpus.path, work, True, *reading(cfg.corpus))
        wait_for_all()
        store = PassageStore.open(work / "passages")
        known = None if vectors is None else matched(vectors, store, encoder, cfg, number == 0)
        if known is not None or not isinstance(kind, ReadyIndex):
            encode = None if encoder is None else encoder.encode
            sizes = (cfg.shard_size, cfg.batch_size)
            embed(store, encode, work, info, *sizes, number, count, show_progress=number == 0, known=known)
        if encoder is not None:
            say_cut(encoder)
        wait_for_all()
        if number == 0:
            if isinstance(kind, ReadyIndex):
                adopt(work, kind, info, queries)
            else:
                build(work, kind, queries)
            if work != folder:
                replace_folder(work, folder)
            write_run_report(folder)
            show(Index.open(folder), f"index and report.md in {folder}")
    return folder


def open_encoder(
    name: str, optional: bool = False, settings: EncoderSettings | None = None
) -> tuple[AnyPassageEncoder | None, EncoderInfo]:
    """The passage encoder, on a GPU if there is one; where it may be missing and is, only its name."""
    try:
        encoder = open_passage_encoder(name, settings).eval()
    except UserError:
        if not optional:
            raise
        return None, EncoderInfo(name, UNKNOWN, UNKNOWN)
    if torch.cuda.is_available():
        encoder.cuda(int(os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID", "0")))
    return encoder, describe_encoder(name, encoder)


def say_cut(encoder: AnyPassageEncoder) -> None:
    """How many of the passages that were embedded were too long for the encoder."""
    if encoder.cut:
        print(
            f"{counted(encoder.cut, 'passage')} of those embedded here ran over the passage encoder's "
            f"{encoder.max_length} tokens: a vector knows nothing of the end; corpus.split_words=100 splits them"
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


def matched(
    vectors: ReadyVectors, store: PassageStore, encoder: AnyPassageEncoder | None, cfg: DictConfig, say: bool
) -> MatchedVectors:
    """Vectors held against the passages, and against the encoder where it is at hand."""
    known = vectors.of(store)
    if known.missing and not cfg.embed_missing:
        raise UserError(
            f"{vectors.path} holds {len(vectors):,} vectors for the {len(store):,} passages of {cfg.corpus.path}: "
            f"{known.describe_missing()}; embed them with embed_missing=true, or take the passages that have a vector, "
            f"as in corpus.path={vectors.path}"
        )
    if encoder is not None:
        known.check_encoder(encoder.encode, cfg.passage_encoder)
    if say and known.missing:
        print(f"of {len(store):,} passages {known.describe_missing()}; these are embedded")
    if say and known.strangers:
        print(
            f"{known.strangers:,} of {len(vectors):,} vectors belong to no passage of {cfg.corpus.path}: left out"
        )
    if say and encoder is None:
        print(f"{cfg.passage_encoder} is not at hand: that the vectors are its own is taken for granted")
    return known


def change(cfg: DictConfig, folder: Path) -> None:
    """Add passages to an index, remove some."""
    mine = Index.open(folder).manifest.encoder
    removed = [] if cfg.remove is None else read_ids(cfg.remove)
    encoder, info = None, None
    if cfg.add is not None:
        for name in dict.fromkeys([mine.name, cfg.passage_encoder]):
            encoder, info = open_encoder(name, True, instantiate(cfg.encoder))
            if encoder is not None and info.may_be(mine):
                break
        else:
            raise UserError(
                f"{folder} was embedded by {mine.name} (weights {mine.weights}), which is not at hand any more: give "
                "passage_encoder=… a copy of it"
            )
    parts = [f"adding {cfg.add}"] * (cfg.add is not None) + [f"removing {len(removed):,} passages"] * bool(
        removed
    )
    print(f"{' and '.join(parts)}: {folder} stays as it is until its new edition is complete")
    encode = None if encoder is None else encoder.encode
    index = update(
        folder,
        cfg.add,
        removed,
        encode,
        info,
        held_out_questions(cfg),
        cfg.batch_size,
        reading=reading(cfg.corpus),
    )
    if encoder is not None:
        say_cut(encoder)
    write_run_report(folder)
    show(index, f"index and report.md in {folder}")


def difference(folder: Path, corpus: DictConfig, encoder: EncoderInfo) -> str | None:
    """In what the vectors of a finished index are not the ones asked for; None if they are."""
    try:
        manifest = Index.open(folder).manifest
    except UserError as error:
        return f"a damaged index ({error})"
    if not manifest.encoder.may_be(encoder):
        return f"vectors of another encoder ({manifest.encoder.name})"
    try:
        PassageStore.prepare(corpus.path, folder / "passages", False, *reading(corpus))
    except UserError:
        return f"another corpus ({manifest.corpus.path})"
    return None


def type_difference(manifest: Manifest, kind: IndexType | ReadyIndex) -> str | None:
    """In what a finished index is not of the type asked for; None if it is."""
    if isinstance(kind, ReadyIndex):
        factory = factory_of(kind.open(manifest.corpus.passages, manifest.dim))
    else:
        factory = filled_factory(kind, manifest.corpus.passages, manifest.dim)
    if manifest.factory != factory:
        return f"an index of type {manifest.factory} instead of {factory}"
    for name, found in manifest.search.items():
        wanted = getattr(kind, name)
        if wanted is not None and wanted != found:
            return f"an index with {name}={found} instead of {wanted}"
    return None


def begun_otherwise(folder: Path, corpus: DictConfig, encoder: EncoderInfo) -> bool:
    """Whether an unfinished build in `folder` is of another corpus or encoder."""
    plan, store = folder / "vectors" / "plan.json", folder / "passages"
    if plan.exists() and not EncoderInfo(**read_json(plan)["encoder"]).may_be(encoder):
        return True
    try:
        if (store / "store.json").exists():
            PassageStore.prepare(corpus.path, store, False, *reading(corpus))
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
    table.add_row("milliseconds a query", f"{manifest.ms_per_query:.2f}")
    for name, value in manifest.seconds.items():
        table.add_row(f"seconds to {name}", f"{value:,.1f}")
    table.add_row("size on disk", f"{sum(f['bytes'] for f in manifest.files.values()) / 1e6:,.1f} MB")
    Console().print(table)

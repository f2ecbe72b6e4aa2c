"""Sections 2.2 and 3: all steps from a corpus to a finished index, and what becomes of one that already exists.

    prepare ──▶ embed, or take vectors over ──▶ build, or take a FAISS file over ──▶ the new index replaces the old one

`Index.build` is this function, and build_index.py calls that.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from rag.errors import UserError
from rag.files import hash_file, lock_file, read_json, replace_folder
from rag.index.build import build
from rag.index.editions import drop_replaced, next_edition, put_back, tidy
from rag.index.embed import PassageEncoder, embed, lock_folder, prepare
from rag.index.faiss_types import IndexType, filled_factory
from rag.index.manifest import Manifest
from rag.index.milvus_fill import fill, is_full
from rag.index.milvus_type import MilvusType
from rag.index.opening import open_files
from rag.index.passages import PassageStore
from rag.index.reading import AS_USUAL, CorpusReading
from rag.index.ready_index import ReadyIndex, adopt, factory_of
from rag.index.ready_vectors import MatchedVectors, ReadyVectors
from rag.index.vectors import UNKNOWN, EncoderInfo
from rag.processes import wait_for_all
from rag.safe_text import say


def build_from_corpus(
    folder: Path | str,
    corpus: Path | str,
    passage_encoder: PassageEncoder | str | None = None,
    index_type: IndexType | ReadyIndex | MilvusType | str = "Flat",
    vectors: ReadyVectors | Path | str | Sequence[Path | str] | None = None,
    embed_missing: bool = False,
    queries: Float32[np.ndarray, "Q D"] | None = None,
    reading: CorpusReading = AS_USUAL,
    shard_size: int = 50_000,
    batch_size: int = 64,
    overwrite: bool | str = False,
    show_progress: bool = True,
    process_index: int = 0,
    process_count: int = 1,
) -> None:
    """See `Index.build`, whose parameters these are. Every process of `rag.processes.processes` calls it."""
    folder = Path(folder)
    first = process_index == 0
    index_type = IndexType(index_type) if isinstance(index_type, str) else index_type
    if vectors is not None and not isinstance(vectors, ReadyVectors):
        vectors = ReadyVectors.find(vectors)
    encoder = None if isinstance(passage_encoder, str) else passage_encoder
    if encoder is None and ((vectors is None and not isinstance(index_type, ReadyIndex)) or embed_missing):
        given = "None" if passage_encoder is None else repr(passage_encoder)
        raise UserError(
            f"passage_encoder={given} cannot embed passages: give an encoder, as open_passage_encoder of rag.encoders "
            "returns it, or vectors=… that exist already"
        )
    name = passage_encoder if isinstance(passage_encoder, str) else UNKNOWN
    info = EncoderInfo(name, UNKNOWN, UNKNOWN) if encoder is None else encoder.describe()
    put_back(folder)
    work, damage = _where_to_work(folder, corpus, reading, info, index_type, overwrite)
    wait_for_all()
    if work is None:
        if first:
            tidy(folder)
        return
    if first and damage is not None:
        _drop_altered(folder)
        print(f"{damage}; what is whole is kept")
    if first:
        if show_progress:
            _announce(folder, corpus, index_type, info, vectors)
        if overwrite and _begun_otherwise(work, corpus, reading, info):
            shutil.rmtree(work)
        prepare(corpus, work, show_progress, reading)
    wait_for_all()
    store = PassageStore.open(work / "passages")
    known = None
    if vectors is not None:
        known = _matched(vectors, store, encoder, info, embed_missing, corpus, show_progress and first)
    if known is not None or not isinstance(index_type, ReadyIndex):
        embed(
            store,
            None if encoder is None else encoder.encode,
            work,
            info,
            shard_size,
            batch_size,
            process_index,
            process_count,
            show_progress=show_progress and first,
            known=known,
        )
    wait_for_all()
    if first:
        if isinstance(index_type, ReadyIndex):
            adopt(work, index_type, info, queries, show_progress=show_progress)
        elif isinstance(index_type, MilvusType):
            old = open_files(folder) if work != folder else None
            fill(work, index_type, queries, show_progress=show_progress, replaces=old)
        else:
            build(work, index_type, queries, show_progress=show_progress)
        if work != folder:
            with lock_folder(folder):
                replace_folder(work, folder)
        drop_replaced(folder)
    wait_for_all()


def embed_part(
    folder: Path | str,
    corpus: Path | str,
    passage_encoder: PassageEncoder,
    number: int,
    count: int,
    reading: CorpusReading = AS_USUAL,
    shard_size: int = 50_000,
    batch_size: int = 64,
    show_progress: bool = True,
) -> int:
    """Embed as process `number` of `count` that never meet, such as a SLURM array's, and return how many passages were
    embedded here; all vectors are there then, and `build_from_corpus` goes on.

    The first to come reads the corpus. The shards of a process that does not come, or is lost, are made by the others.
    Raises UserError as `build_from_corpus` does.
    """
    folder = Path(folder)
    if not 0 <= number < count:
        raise UserError(f"part={number}/{count} does not exist: give 0/{count} to {count - 1}/{count}")
    if (folder / "manifest.json").exists():
        say(f"{folder} holds a finished index: nothing is left to embed")
        return 0
    folder.mkdir(parents=True, exist_ok=True)
    with lock_file(folder / ".lock-passages"):
        if not (folder / "passages" / "store.json").is_file():
            say(f"part {number} of {count} reads {corpus}")
        store = PassageStore.prepare(corpus, folder / "passages", show_progress, reading)
    encode, info = passage_encoder.encode, passage_encoder.describe()
    return embed(store, encode, folder, info, shard_size, batch_size, number, count, show_progress)


def _where_to_work(
    folder: Path,
    corpus: Path | str,
    reading: CorpusReading,
    encoder: EncoderInfo,
    index_type: IndexType | ReadyIndex | MilvusType,
    overwrite: bool | str,
) -> tuple[Path | None, UserError | None]:
    """The folder to build in, None where the index that was asked for is there; and what is damaged of that index.

    UserError where another one is there.
    """
    if not (folder / "manifest.json").exists():
        return folder, None
    other, damage = _other_vectors(folder, corpus, reading, encoder)
    if other is None and damage is not None:
        return folder, damage
    other_type = None if other else _other_type(folder, open_files(folder).manifest, index_type)
    if other is None and other_type is None and overwrite is not True:
        return (None if is_full(folder) else folder), None
    if not overwrite:
        raise UserError(
            f"{folder} holds {other or other_type}: choose another index.path, or replace it with overwrite=true"
        )
    if other_type is not None:  # its vectors are the right ones
        return folder, None
    return next_edition(folder), None  # the old index stays until the new one is complete


def _other_vectors(
    folder: Path, corpus: Path | str, reading: CorpusReading, encoder: EncoderInfo
) -> tuple[str | None, UserError | None]:
    """In what the vectors of an index are not the ones asked for, None if they are; and what of it is damaged, None if
    nothing is. An index whose passages are damaged is another."""
    damage, plan = None, folder / "vectors" / "plan.json"
    try:
        made_by = open_files(folder).manifest.encoder
    except UserError as error:
        damage = error
        if not plan.is_file():
            return f"a damaged index ({damage})", damage
        made_by = EncoderInfo(**read_json(plan)["encoder"])
    if not made_by.may_be(encoder):
        return f"vectors of another encoder ({made_by.name})", damage
    try:
        store = PassageStore.prepare(corpus, folder / "passages", False, reading)
        store.verify() if damage is not None else None
    except UserError as error:
        return f"a damaged index ({error})" if damage is not None else f"another corpus ({error})", damage
    return None, damage


def _drop_altered(folder: Path) -> None:
    """Remove the vectors that are not those that were written, as far as is known, so that they are made again."""
    try:
        files = Manifest.read(folder / "manifest.json").files
    except UserError:  # nothing is known
        return
    for name, expected in files.items():
        file = folder / name
        if file.suffix == ".npy" and file.is_file() and hash_file(file) != expected["sha256"]:
            file.unlink()


def _other_type(
    folder: Path, manifest: Manifest, index_type: IndexType | ReadyIndex | MilvusType
) -> str | None:
    """In what a finished index is not of the type asked for; None if it is."""
    if isinstance(index_type, MilvusType) and manifest.engine:
        was = MilvusType(**manifest.type)
        for name, mine, asked in (
            ("engine", was.place(folder), index_type.place(folder)),
            *was.unlike(index_type),
        ):
            if mine != asked:
                return f"an index with {name} {mine} instead of {asked}"
    if isinstance(index_type, ReadyIndex):
        factory = factory_of(index_type.open(manifest.corpus.passages, manifest.dim))
    elif isinstance(index_type, MilvusType):
        factory = index_type.factory
    else:
        factory = filled_factory(index_type, manifest.corpus.passages, manifest.dim)
    if manifest.factory != factory:
        return f"an index of type {manifest.factory} instead of {factory}"
    asked = index_type.search_parameters
    for name, value in manifest.search.items():
        if asked[name] is not None and asked[name] != value:
            return f"an index with {name}={value} instead of {asked[name]}"
    return None


def _begun_otherwise(folder: Path, corpus: Path | str, reading: CorpusReading, encoder: EncoderInfo) -> bool:
    """Whether an unfinished build in `folder` is of another corpus or encoder."""
    plan, store = folder / "vectors" / "plan.json", folder / "passages"
    if plan.exists() and not EncoderInfo(**read_json(plan)["encoder"]).may_be(encoder):
        return True
    try:
        if (store / "store.json").exists():
            PassageStore.prepare(corpus, store, False, reading)
    except UserError:
        return True
    return False


def _announce(
    folder: Path,
    corpus: Path | str,
    index_type: IndexType | ReadyIndex | MilvusType,
    encoder: EncoderInfo,
    vectors: ReadyVectors | None,
) -> None:
    taken_over = isinstance(index_type, ReadyIndex)
    what = f"taking over {index_type.file}" if taken_over else f"building an index ({index_type.factory})"
    whose = encoder.name if vectors is None else f"vectors of {vectors.path}"
    say(f"{what} of {corpus} by {whose} in {folder}")


def _matched(
    vectors: ReadyVectors,
    store: PassageStore,
    encoder: PassageEncoder | None,
    info: EncoderInfo,
    embed_missing: bool,
    corpus: Path | str,
    show_progress: bool,
) -> MatchedVectors:
    """Vectors held against the passages, and against the encoder where it is at hand."""
    known = vectors.of(store)
    if known.missing and not embed_missing:
        raise UserError(
            f"{vectors.path} holds {len(vectors):,} vectors for the {len(store):,} passages of {corpus}: "
            f"{known.describe_missing()}; embed them with embed_missing=true, or take the passages that have a vector, "
            f"as in corpus.path={vectors.path}"
        )
    if encoder is not None:
        known.check_encoder(encoder.encode, info.name)
    if show_progress:
        if known.missing:
            say(f"of {len(store):,} passages {known.describe_missing()}; these are embedded")
        if known.strangers:
            say(f"{known.strangers:,} of {len(vectors):,} vectors belong to no passage of {corpus}: left out")
        if encoder is None:
            say(f"{info.name} is not available, so the vectors could not be checked against it")
    return known

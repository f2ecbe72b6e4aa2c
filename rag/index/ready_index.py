"""Section 2.2: a FAISS file that was made elsewhere, taken instead of building one.

The hub's facebook/wiki_dpr has two over its 21,015,300 vectors: psgs_w100.nq.HNSW128_SQ8-IP-train.faiss, the kind
the paper used, and psgs_w100.nq.IVF4096_HNSW128_PQ128-IP-train.faiss, whose poor recall cost others 17 points of
exact match. Both search by inner product, without the added dimension of older files. Row i of the file is the
i-th passage. What can be held against the passages and their true vectors is, before the file is taken: count,
dimension, metric, and whether the vector of a row is that passage's. The search parameters are then chosen and the
recall measured as for any other index; without true vectors the recall is unknown, and the manifest says so.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from faiss.contrib.factory_tools import reverse_index_factory
from jaxtyping import Float32

from rag.errors import UserError
from rag.index.build import build
from rag.index.faiss_types import IndexType
from rag.index.manifest import Manifest
from rag.index.passages import PassageStore
from rag.index.vectors import DecodedVectors, EncoderInfo, Vectors, open_vectors

SAMPLED = 32  # rows whose vectors are held against the passages' own
LEAST_RIGHT = 0.9


@dataclass(frozen=True)
class ReadyIndex:
    """A FAISS file; nprobe, ef_search, refine and target_recall as in IndexType."""

    file: str
    nprobe: int | None = None
    ef_search: int | None = None
    refine: int | None = None
    target_recall: float = 0.99

    @property
    def search_parameters(self) -> dict[str, int | None]:
        """As in IndexType."""
        return {"nprobe": self.nprobe, "ef_search": self.ef_search, "refine": self.refine}

    def open(self, passages: int, dim: int | None = None) -> Any:
        """The index, mapped. Raises UserError if it cannot be one of so many passages and dimensions."""
        if not Path(self.file).is_file():
            raise UserError(f"{self.file} does not exist: give index.type.file=… a FAISS file")
        try:
            index = faiss.read_index(self.file, faiss.IO_FLAG_MMAP_IFC)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1].removeprefix("Error: ")
            raise UserError(
                f"{self.file} is not a FAISS index, or was cut short ({reason}): download it again"
            ) from error
        if index.metric_type != faiss.METRIC_INNER_PRODUCT:
            added = ", one more than DPR's: by an added dimension" if index.d == 769 else ""
            raise UserError(
                f"{self.file} does not search by inner product ({index.d} dimensions{added}): use a file whose name "
                "says IP, or build the index (index=flat, …)"
            )
        if dim is not None and index.d != dim:
            raise UserError(
                f"{self.file} holds vectors of {index.d} dimensions and the passages' have {dim}: give the file of the "
                "same encoder, or build the index (index=flat, …)"
            )
        if index.ntotal != passages:
            raise UserError(
                f"{self.file} holds {index.ntotal:,} vectors for {passages:,} passages: give corpus.path=… the "
                "passages it was made of, or build the index (index=flat, …)"
            )
        return index


def factory_of(index: Any) -> str:
    """FAISS's factory string of an index, or its class where there is none."""
    try:
        return reverse_index_factory(index)
    except (NotImplementedError, AssertionError):
        return type(faiss.downcast_index(index)).__name__


def adopt(
    folder: Path | str,
    ready: ReadyIndex,
    encoder: EncoderInfo,
    queries: Float32[np.ndarray, "Q D"] | None = None,
    recall_queries: int = 200,
    seed: int = 0,
    show_progress: bool = True,
) -> Manifest:
    """Make an index folder of the passages in it and a FAISS file made elsewhere; see `build`.

    Where the folder has true vectors, the recall is measured against them; otherwise it is unknown, and the loss
    takes its scores from what the file's quantiser left of the vectors, which are `encoder`'s.

    Raises UserError if the file does not fit the passages or their vectors; an index that is there is left alone.
    """
    folder = Path(folder)
    store = PassageStore.open(folder / "passages")
    vectors = open_vectors(folder, store)[1] if (folder / "vectors" / "plan.json").exists() else None
    index = ready.open(len(store), None if vectors is None else vectors.dim)
    if vectors is not None:
        _check_rows(ready.file, index, vectors, seed)
    kind = IndexType(
        factory_of(index),
        nprobe=ready.nprobe,
        ef_search=ready.ef_search,
        refine=ready.refine,
        target_recall=ready.target_recall,
    )
    return build(folder, kind, queries, recall_queries, seed, show_progress, begun=index, encoder=encoder)


def _check_rows(file: str, index: Any, vectors: Vectors, seed: int) -> None:
    """UserError unless row i of the file is the vector of passage i, compressed as it may be."""
    rows = np.random.default_rng(seed).choice(len(vectors), min(SAMPLED, len(vectors)), replace=False)
    true = vectors.gather(np.sort(rows))
    try:
        kept = DecodedVectors(index).gather(np.sort(rows))
    except RuntimeError:  # a type that cannot give its vectors back: the recall will tell
        return
    unit = [each / np.maximum(np.linalg.norm(each, axis=1, keepdims=True), 1e-12) for each in (kept, true)]
    right = float(((unit[0] @ unit[1].T).argmax(axis=1) == np.arange(len(rows))).mean())
    if right < LEAST_RIGHT:
        raise UserError(
            f"{file} holds other vectors than the passages', or the same in another order (of {len(rows)} rows "
            f"{right:.0%} are nearest to their own passage): give the file that was made of them, or build the index"
        )

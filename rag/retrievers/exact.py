"""Section 2.2: exact maximum inner product search with torch, where the vectors fit into the device's memory.

    top-K of q(x)ᵀd(z) over all N passages z, a chunk of vectors at a time

On a GPU the vectors are kept in bfloat16: 21 million of 768 dimensions take 32 GB. A few more candidates than K
are looked for there and put in order by their true vectors, so that rounding does not cost a passage. On the CPU
they are read in float32 from the mapped files, which all processes share. What the loss sees is, as with every
index, q(x)ᵀd(z) in float32.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from rag.encoders.protocol import AnyQuestionEncoder
from rag.encoders.settings import EncoderSettings
from rag.errors import UserError
from rag.index.folder import Index
from rag.marginalize import without_autocast
from rag.retrievers.dense import DenseRetriever, beside, open_pair
from rag.retrievers.fresh import FreshPassages, Side
from rag.retrievers.null_document import NullDocument
from rag.retrievers.scale import Scale

SCORES_AT_ONCE = 1 << 24  # float32 scores in memory at a time: 64 MB
ROWS_AT_ONCE = 1 << 16


class ExactSearch:
    """The vectors of an index on one device, in `dtype`: bfloat16 or float32; None: the former on a GPU."""

    def __init__(self, index: Index, device: torch.device | str, dtype: torch.dtype | None = None):
        self.index = index
        self.device = torch.device(device)
        self.dtype = dtype or (torch.float32 if self.device.type == "cpu" else torch.bfloat16)
        mapped = self.device.type == "cpu" and self.dtype == torch.float32
        self._copy = None if mapped else self._copied()

    def _copied(self) -> Float[Tensor, "N D"]:
        """All vectors on the device. Raises UserError if they do not fit."""
        wanted = len(self.index) * self.index.dim * self.dtype.itemsize
        if self.device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(self.device)
            if wanted > free:
                raise UserError(
                    f"the {len(self.index):,} vectors of {self.index.folder} take {wanted / 1e9:.1f} GB in "
                    f"{str(self.dtype).removeprefix('torch.')} and {self.device} has {free / 1e9:.1f} GB free: take "
                    "retriever=dense, which searches the index in the machine's memory"
                )
        vectors = torch.empty(len(self.index), self.index.dim, dtype=self.dtype, device=self.device)
        for start, block in self.index.vector_blocks(ROWS_AT_ONCE):
            vectors[start : start + len(block)] = torch.from_numpy(block).to(self.device)
        return vectors

    def _chunks(self, rows: int) -> Iterator[tuple[int, Float[Tensor, "rows D"]]]:
        if self._copy is not None:
            for start in range(0, len(self._copy), rows):
                yield start, self._copy[start : start + rows]
        else:
            for start, block in self.index.vector_blocks(rows):
                yield start, torch.from_numpy(block)

    @torch.inference_mode()
    def search(self, queries: Float[Tensor, "B D"], k: int) -> Int64[np.ndarray, "B k"]:
        """The rows of the k passages with the largest q(x)ᵀd(z), best first.

        Memory is bounded: besides the vectors, 64 MB of scores. Raises UserError if there are fewer than k.
        """
        if not 1 <= k <= len(self.index):
            raise UserError(
                f"K={k} passages cannot be found in an index of {len(self.index)} ({self.index.folder}): lower K"
            )
        with without_autocast(queries):
            return self._search(queries, k)

    def _search(self, queries: Float[Tensor, "B D"], k: int) -> Int64[np.ndarray, "B k"]:
        rounded = self.dtype != torch.float32
        candidates = min(2 * k + 16 if rounded else k, len(self.index))
        asked = queries.to(self.device, self.dtype)
        scores = torch.empty(len(asked), 0, device=self.device)
        rows = torch.empty(len(asked), 0, dtype=torch.int64, device=self.device)
        step = max(candidates, min(ROWS_AT_ONCE, SCORES_AT_ONCE // max(1, len(asked))))
        for start, chunk in self._chunks(step):
            chunk_scores, rows_in_chunk = (asked @ chunk.T).float().topk(min(candidates, len(chunk)), dim=1)
            scores, rows = (
                torch.cat([scores, chunk_scores], dim=1),
                torch.cat([rows, rows_in_chunk + start], dim=1),
            )
            if scores.shape[1] > candidates:
                scores, best = scores.topk(candidates, dim=1)
                rows = rows.gather(1, best)
        if rounded:
            true = torch.from_numpy(self.index.vectors(rows.cpu().numpy())).to(self.device)
            scores = torch.einsum("bd,bkd->bk", queries.to(self.device).float(), true)
        best = scores.argsort(dim=1, descending=True)[:, :k]
        return rows.gather(1, best).cpu().numpy()


class ExactRetriever(DenseRetriever):
    """DenseRetriever that searches all vectors instead of the index's FAISS file: retriever=exact.

    dtype: "bfloat16" or "float32"; None: bfloat16 on a GPU, float32 on the CPU. The vectors are put on the device of
    the question encoder when it is first asked.
    """

    kind = "exact search"

    def __init__(
        self,
        question_encoder: AnyQuestionEncoder | Any,
        index: Index,
        trainable: bool | Side = True,
        null_document: NullDocument | None = None,
        dtype: str | None = None,
        scale: Scale | None = None,
        passage_encoder: FreshPassages | None = None,
        overfetch: int | None = None,
    ):
        super().__init__(question_encoder, index, trainable, null_document, scale, passage_encoder, overfetch)
        if dtype not in (None, "bfloat16", "float32"):
            raise UserError(f"retriever.dtype={dtype} does not exist; available: bfloat16, float32 and null")
        self.dtype = None if dtype is None else getattr(torch, dtype)
        self._searcher: ExactSearch | None = None

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        question_encoder: str | Path,
        index: str | Path,
        trainable: bool | Side = True,
        null_document: NullDocument | None = None,
        dtype: str | None = None,
        scale: Scale | None = None,
        encoder: EncoderSettings | None = None,
        passage_encoder: FreshPassages | None = None,
        overfetch: int | None = None,
    ) -> Self:
        opened = open_pair(question_encoder, index, encoder)
        made = cls(*opened, trainable, null_document, dtype, scale, passage_encoder, overfetch)
        made.saved_beside = beside(question_encoder)
        return made

    def search(self, queries: Float[Tensor, "batch dim"], n_docs: int) -> Int64[np.ndarray, "batch docs"]:
        searcher = self._searcher
        if searcher is None or searcher.index is not self.index or searcher.device != queries.device:
            self._searcher = None  # the old vectors make room for the new ones
            searcher = self._searcher = ExactSearch(self.index, queries.device, self.dtype)
        return searcher.search(queries.detach(), n_docs)

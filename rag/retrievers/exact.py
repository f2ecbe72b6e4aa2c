"""Section 2.2: exact maximum inner product search with torch, where the vectors fit into the device's memory.

    top-K of q(x)ᵀd(z) over all N passages z

The K best passages are in the K groups of passages whose best are the best: a first pass over all vectors keeps the
highest score of each group alone (group_maxima.py), a second one scores those groups' passages.

On a GPU the vectors are kept in bfloat16: 21 million of 768 dimensions take 32 GB. Some more candidates than K are
put in order by their true vectors, so that rounding does not cost a passage. On the CPU vectors are read in float32
from the mapped files, which all processes share. What the loss sees is, as with every index, q(x)ᵀd(z) in float32.
"""

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
from rag.retrievers.group_maxima import group_maxima
from rag.retrievers.null_document import NullDocument
from rag.retrievers.scale import Scale

# Read from a file at a time, and their float32 scores: 64 MB.
ROWS_AT_ONCE, SCORES_AT_ONCE = 1 << 16, 1 << 24
# The highest scores of groups held at a time, 256 MB in float32, and the numbers of vectors that are scored together.
MAXIMA_AT_ONCE, SCORED_AT_ONCE = 1 << 26, 1 << 26
# Passages in a group. Many candidates take smaller ones: what is read a second time stays a small part of all.
GROUP, READ_AGAIN = 64, 1 << 14


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

    @torch.inference_mode()
    def search(self, queries: Float[Tensor, "B D"], k: int) -> Int64[np.ndarray, "B k"]:
        """The rows of the k passages with the largest q(x)ᵀd(z), best first.

        Memory is bounded: besides the vectors, some hundred MB of scores. Raises UserError if there are fewer than k.
        """
        if not 1 <= k <= len(self.index):
            raise UserError(
                f"K={k} passages cannot be found in an index of {len(self.index)} ({self.index.folder}): lower K"
            )
        if not len(queries):
            return np.empty((0, k), np.int64)
        with without_autocast(queries):
            return self._search(queries, k)

    def _search(self, queries: Float[Tensor, "B D"], k: int) -> Int64[np.ndarray, "B k"]:
        asked = queries.to(self.device, torch.float32)
        if self._copy is None:
            return self._in_files(asked, k).numpy()
        # Rounding the vectors moves a score by far less than what lies between the best: some more than K are enough.
        candidates = min(k + max(16, k // 4), len(self.index))
        rows = self._best_within(
            self._copy, asked, self._best_groups(self._copy, asked, candidates), candidates
        )
        if self.dtype != torch.float32:
            true = torch.from_numpy(self.index.vectors(rows.cpu().numpy())).to(self.device)
            scores = torch.einsum("bd,bkd->bk", asked, true)
            rows = rows.gather(1, scores.argsort(dim=1, descending=True))
        return rows[:, :k].cpu().numpy()

    def _in_files(self, queries: Float[Tensor, "B D"], k: int) -> Int64[Tensor, "B k"]:
        """A block of the files after the other, each read once."""
        best = torch.empty(len(queries), 0)
        rows = torch.empty(len(queries), 0, dtype=torch.int64)
        for start, block in self.index.vector_blocks(
            min(ROWS_AT_ONCE, SCORES_AT_ONCE // max(1, len(queries)))
        ):
            scores, which = _largest(queries @ torch.from_numpy(block).T, k)
            best, kept = _largest(torch.cat([best, scores], dim=1), k)
            rows = torch.cat([rows, which + start], dim=1).gather(1, kept)
        return rows.gather(1, best.argsort(dim=1, descending=True))

    def _best_groups(
        self, vectors: Float[Tensor, "N D"], queries: Float[Tensor, "B D"], count: int
    ) -> tuple[Int64[Tensor, "B groups"], Int64[Tensor, "B groups"]]:
        """The first rows of the `count` groups with the highest scores, and the rows where they end."""
        group = min(GROUP, 1 << max(1, READ_AGAIN // count).bit_length() - 1)  # a power of two
        asked = queries.to(self.dtype)
        at_once = max(1, MAXIMA_AT_ONCE // max(1, len(asked))) * group
        best = torch.empty(len(asked), 0, device=self.device)
        starts = torch.empty(len(asked), 0, dtype=torch.int64, device=self.device)
        for start in range(0, len(vectors), at_once):
            highest, which = _largest(group_maxima(vectors[start : start + at_once], asked, group), count)
            best, kept = _largest(torch.cat([best, highest], dim=1), count)
            starts = torch.cat([starts, start + which * group], dim=1).gather(1, kept)
        return starts, (starts + group).clamp(max=len(vectors))

    def _best_within(
        self,
        vectors: Float[Tensor, "N D"],
        queries: Float[Tensor, "B D"],
        groups: tuple[Int64[Tensor, "B groups"], Int64[Tensor, "B groups"]],
        count: int,
    ) -> Int64[Tensor, "B count"]:
        """The rows of the `count` passages of these groups with the highest scores, best first."""
        starts, ends = groups
        rows = starts.unsqueeze(2) + torch.arange(int((ends - starts).amax()), device=self.device)
        missing = (rows >= ends.unsqueeze(2)).flatten(1)
        rows = rows.flatten(1).clamp(max=len(vectors) - 1)
        at_once = max(1, SCORED_AT_ONCE // (rows.shape[1] * vectors.shape[1]))
        found = []
        for asked, of_asked, absent in zip(
            queries.split(at_once), rows.split(at_once), missing.split(at_once), strict=True
        ):
            scores = torch.einsum("bd,bnd->bn", asked, vectors[of_asked].float())
            best = scores.masked_fill_(absent, -torch.inf).topk(count, dim=1).indices
            found.append(of_asked.gather(1, best))
        return torch.cat(found)


def _largest(values: Float[Tensor, "B n"], count: int) -> tuple[Tensor, Int64[Tensor, "B some"]]:
    """Of each row the `count` largest values, or all there are, in any order; and where they stand."""
    largest = values.topk(min(count, values.shape[1]), dim=1, sorted=False)
    return largest.values, largest.indices


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

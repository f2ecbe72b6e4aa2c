"""retriever=exact: the same passages as argsort over all of them, on whatever device, in bounded memory."""

from pathlib import Path

import numpy as np
import pytest
import torch
from clustered import D, corpus, encode, make, random_queries
from conftest import PASSAGES, QUESTIONS, build_tiny_index
from torch.testing import assert_close

from rag.errors import UserError
from rag.index.faiss_types import IndexType
from rag.retrievers import exact
from rag.retrievers.dense import DenseRetriever
from rag.retrievers.exact import ExactRetriever, ExactSearch


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    """2,000 vectors in shards of 700, under a FAISS file that finds next to nothing: exact search does without it."""
    kind = IndexType("IVF{nlist},SQ8", nlist=32, nprobe=1, refine=1)
    return make(tmp_path_factory.mktemp("exact") / "index", 2000, kind, shard_size=700)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("k", [1, 7, 900, 2000])
def test_equals_argsort(index, dtype, k, monkeypatch):
    monkeypatch.setattr(exact, "ROWS_AT_ONCE", 300)  # several chunks a shard, and a shorter one at its end
    queries = random_queries(9)
    expected = np.argsort(-(queries @ encode(corpus(2000)).T), axis=1)[:, :k]
    rows = ExactSearch(index, "cpu", dtype).search(torch.from_numpy(queries), k)
    if dtype == torch.float32:
        np.testing.assert_array_equal(rows, expected)
    else:  # rounding can only cost passages at the very end of twice as many candidates
        np.testing.assert_array_equal(rows[:, : max(1, k - 2)], expected[:, : max(1, k - 2)])


def test_memory_of_scores_is_bounded(index, monkeypatch):
    """However many questions: a chunk has so few rows that its scores fit."""
    monkeypatch.setattr(exact, "SCORES_AT_ONCE", 1 << 13)
    queries = np.repeat(random_queries(9), 10, axis=0)
    seen = []
    chunks = ExactSearch._chunks
    monkeypatch.setattr(ExactSearch, "_chunks", lambda self, rows: seen.append(rows) or chunks(self, rows))
    rows = ExactSearch(index, "cpu").search(torch.from_numpy(queries), 5)
    assert seen == [(1 << 13) // 90]
    np.testing.assert_array_equal(rows, np.argsort(-(queries @ encode(corpus(2000)).T), axis=1)[:, :5])


def test_the_cpu_reads_the_mapped_files_in_float32(index):
    search = ExactSearch(index, "cpu")
    chunk = next(search._chunks(700))[1]
    address = chunk.data_ptr()
    lines = Path("/proc/self/maps").read_text().splitlines()
    maps = [line.split() for line in lines if line.endswith("00000.npy")]
    spans = [[int(each, 16) for each in line[0].split("-")] for line in maps]
    assert any(start <= address < end for start, end in spans) and search.dtype == torch.float32


def test_more_than_there_are(index):
    with pytest.raises(UserError, match="K=2001 passages cannot be found in an index of 2000"):
        ExactSearch(index, "cpu").search(torch.zeros(1, D), 2001)


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_the_retriever_gives_the_dense_ones_passages_scores_and_gradients(
    question_encoder, passage_encoder, tmp_path, dtype
):
    index = build_tiny_index(tmp_path / "tiny", passage_encoder)
    dense = DenseRetriever(question_encoder, index)
    other = ExactRetriever(question_encoder, index, dtype=dtype)
    expected, retrieved = dense(dense.prepare(QUESTIONS), 4), other(other.prepare(QUESTIONS), 4)
    assert retrieved.rows.tolist() == expected.rows.tolist()
    assert_close(retrieved.scores, expected.scores)
    assert retrieved.scores.dtype == torch.float32
    gradients = []
    for result in (expected, retrieved):
        question_encoder.zero_grad()
        result.doc_logprobs[:, 0].sum().backward()
        gradients.append([w.grad.clone() for w in question_encoder.parameters() if w.grad is not None])
    assert_close(gradients[0], gradients[1])
    assert other.state_dict().keys() == dense.state_dict().keys()  # the vectors are no part of a checkpoint


def test_the_retriever_follows_a_swapped_memory(question_encoder, passage_encoder, tmp_path):
    index = build_tiny_index(tmp_path / "tiny", passage_encoder)
    turned = build_tiny_index(tmp_path / "turned", passage_encoder, PASSAGES[::-1])
    retriever = ExactRetriever(question_encoder, index, dtype="bfloat16")
    before = retriever(retriever.prepare(QUESTIONS), 3)
    retriever.swap(turned)
    after = retriever(retriever.prepare(QUESTIONS), 3)
    assert after.rows.tolist() == (len(PASSAGES) - 1 - before.rows).tolist()
    with pytest.raises(UserError, match="retriever.dtype=int8 does not exist"):
        ExactRetriever(question_encoder, index, dtype="int8")

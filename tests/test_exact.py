"""retriever=exact: the same passages as argsort over all of them, on whatever device, in bounded memory."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from clustered import D, corpus, encode, make, random_queries
from conftest import PASSAGES, QUESTIONS, build_tiny_index
from torch.testing import assert_close

from rag.errors import UserError
from rag.index.faiss_types import IndexType
from rag.retrievers import exact, group_maxima
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


@pytest.mark.parametrize("group", [1, 8, 64, 128])
@pytest.mark.parametrize("count", [1, 63, 64, 1000])
def test_maxima_of_groups(group, count, monkeypatch):
    monkeypatch.setattr(group_maxima, "SCORES_AT_ONCE", 9 * 256)  # parts
    draw = torch.Generator().manual_seed(0)
    vectors, queries = (torch.randn(n, 24, generator=draw) for n in (count, 9))
    expected = torch.stack([each.amax(1) for each in (queries @ vectors.T).split(group, dim=1)], dim=1)
    assert_close(group_maxima.group_maxima(vectors, queries, group), expected)


KERNEL = """
import torch
from rag.retrievers.group_maxima import group_maxima
from rag.retrievers.maxima_kernel import by_kernel
device = "cuda" if torch.cuda.is_available() else "cpu"
dtypes = torch.float16, torch.bfloat16 if device == "cuda" else torch.float32
shapes = (300, 48, 9, 64), (1000, 100, 70, 8), (128, 64, 1, 1), (5, 64, 200, 64), (257, 96, 17, 128)
for count, dim, asked, group in shapes:
    for dtype in dtypes:
        vectors, queries = (torch.randn(n, dim).to(device, dtype) for n in (count, asked))
        expected = group_maxima(vectors.cpu().float(), queries.cpu().float(), group)
        torch.testing.assert_close(by_kernel(vectors, queries, group).cpu(), expected, rtol=1e-4, atol=1e-4)
"""


@pytest.mark.skipif(find_spec("triton") is None, reason="torch brings Triton on a machine with a GPU alone")
@pytest.mark.parametrize(
    "interpreted", [pytest.param(False, marks=pytest.mark.gpu), pytest.param(True, id="interpreted")]
)
def test_the_kernel_takes_the_same_maxima(interpreted):
    """On a GPU, or by Triton's interpreter, which has to be asked for before Triton is imported."""
    there = {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""} if interpreted else {}
    done = subprocess.run(
        [sys.executable, "-c", KERNEL], env=os.environ | there, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_memory_of_scores_is_bounded(index, monkeypatch):
    """However many questions: a block of a file has so few rows that its scores fit."""
    monkeypatch.setattr(exact, "SCORES_AT_ONCE", 1 << 13)
    queries = np.repeat(random_queries(9), 10, axis=0)
    seen = []
    blocks = type(index).vector_blocks
    monkeypatch.setattr(
        type(index), "vector_blocks", lambda self, rows: seen.append(rows) or blocks(self, rows)
    )
    rows = ExactSearch(index, "cpu").search(torch.from_numpy(queries), 5)
    assert seen == [(1 << 13) // 90]
    np.testing.assert_array_equal(rows, np.argsort(-(queries @ encode(corpus(2000)).T), axis=1)[:, :5])


@pytest.mark.parametrize("k", [1, 7, 400])
def test_in_parts_as_in_one_piece(index, k, monkeypatch):
    """Many vectors or questions: maxima are held for a part of the vectors, scores for a part of the questions."""
    queries = torch.from_numpy(random_queries(9))
    search = ExactSearch(index, "cpu", torch.bfloat16)
    whole = search.search(queries, k)
    for read_again in (1, 2_048):  # groups of one, when more candidates are wanted than that, and of some
        monkeypatch.setattr(exact, "READ_AGAIN", read_again)
        np.testing.assert_array_equal(search.search(queries, k), whole)
    monkeypatch.setattr(exact, "MAXIMA_AT_ONCE", 9 * 3)
    monkeypatch.setattr(exact, "SCORED_AT_ONCE", 1)
    np.testing.assert_array_equal(search.search(queries, k), whole)
    assert search.search(queries[:0], k).shape == (0, k)


def test_the_cpu_reads_the_mapped_files_in_float32(index):
    search = ExactSearch(index, "cpu")
    assert search._copy is None
    block = next(index.vector_blocks(700))[1]
    address = block.ctypes.data
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

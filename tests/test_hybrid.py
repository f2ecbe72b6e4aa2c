"""Section 2.2 with cosines, their scale, and BM25 beside them: p(z|x) = softmax of s · q(x)ᵀd(z) + w · BM25(x, z)."""

import json
import logging
import math
import shutil
from dataclasses import asdict
from functools import partial

import numpy as np
import pytest
import torch
from conftest import PASSAGES, QUESTIONS, build_tiny_index
from hydra.utils import instantiate
from sentence_folders import tiny_transformer, write_modules
from torch.testing import assert_close

from rag.encoders.opening import open_passage_encoder, open_question_encoder
from rag.encoders.protocol import describe_encoder
from rag.encoders.settings import EncoderSettings
from rag.errors import UserError
from rag.index.build import build
from rag.index.folder import Index
from rag.index.passage import Passage
from rag.index.passages import PassageStore
from rag.index.vectors import UNKNOWN, EncoderInfo
from rag.parts import load_parts, save_parts
from rag.retrievers.dense import DenseRetriever
from rag.retrievers.exact import ExactRetriever
from rag.retrievers.hybrid import HybridRetriever
from rag.retrievers.lexical import BM25
from rag.retrievers.null_document import NullBias
from rag.retrievers.scale import LearnedScale, number_of
from rag.training.dpr import BiEncoder, sentence_encoders

ALL = len(PASSAGES)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(5)
    return write_modules(tiny_transformer(tmp_path_factory.mktemp("encoder")), prompts={"document": "the "})


@pytest.fixture(scope="module")
def cosines(tmp_path_factory, folder) -> Index:
    return an_index(tmp_path_factory.mktemp("index") / "cosines", folder)


def an_index(place, folder, passages=PASSAGES, **settings) -> Index:
    encoder = open_passage_encoder(folder, EncoderSettings(**settings)).eval()
    return build_tiny_index(place, encoder, passages, info=describe_encoder(str(folder), encoder))


@pytest.fixture
def encoder(folder):
    return open_question_encoder(folder).eval()


def cosine(encoder, index) -> torch.Tensor:
    queries = encoder(**encoder.tokenize(QUESTIONS))
    return queries @ torch.from_numpy(index.vectors(np.arange(len(index)))).T


def bm25(index) -> torch.Tensor:
    """By hand: Σ_t idf(t) · tf / (tf + k1·(1 − b + b·|z| / mean |z|)), from the words themselves."""
    analyze = BM25.build(index.passages)._analyze
    words = [analyze(f"{p.title} {p.text}") for p in index.passages]
    mean = np.mean([len(each) for each in words])
    scores = np.zeros((len(QUESTIONS), len(words)), np.float32)
    for i, question in enumerate(QUESTIONS):
        for term in analyze(question):
            df = sum(term in each for each in words)
            idf = math.log(1 + (len(words) - df + 0.5) / (df + 0.5))
            for j, each in enumerate(words):
                tf = each.count(term)
                scores[i, j] += idf * tf / (tf + 0.9 * (1 - 0.4 + 0.4 * len(each) / mean))
    return torch.from_numpy(scores)


# -- cosines and their scale ----------------------------------------------------------------------


def test_an_index_knows_whether_it_holds_cosines(cosines, index, tmp_path, folder):
    assert cosines.manifest.metric == "cosine" and index.manifest.metric == "inner product"
    assert cosines.manifest.encoder.reading == {"pooling": "mean", "normalize": True, "prompt": "the "}
    assert an_index(tmp_path / "i", folder, normalize=False).manifest.metric == "inner product"


@pytest.mark.parametrize("kind", [DenseRetriever, ExactRetriever])
@pytest.mark.parametrize(("scale", "factor"), [(None, 20.0), (1.0, 1.0), (7.5, 7.5)])
def test_logits_are_scaled_cosines(encoder, cosines, kind, scale, factor):
    retriever = kind(encoder, cosines, scale=scale)
    found = retriever(retriever.prepare(QUESTIONS), 3)
    scores, rows = (factor * cosine(encoder, cosines)).sort(dim=1, descending=True)
    assert found.rows.tolist() == rows[:, :3].tolist()
    assert_close(found.scores, scores[:, :3])


def test_inner_products_are_not_scaled_unless_asked_to(question_encoder, index):
    assert DenseRetriever(question_encoder, index).scale == 1.0
    one, two = (DenseRetriever(question_encoder, index, scale=scale) for scale in (None, 2.0))
    assert_close(two(two.prepare(QUESTIONS), 3).scores, 2 * one(one.prepare(QUESTIONS), 3).scores)


def test_a_learned_scale_is_trained_saved_and_made_again(encoder, cosines, tmp_path):
    """d Σ w·s·c / d log s = Σ w·s·c."""
    retriever = DenseRetriever(encoder, cosines, scale=LearnedScale(5.0))
    found = retriever(retriever.prepare(QUESTIONS), 3)
    weights = torch.randn(found.scores.shape)
    (weights * found.scores).sum().backward()
    assert_close(retriever.scale.log.grad, (weights * found.scores).sum().detach())
    with torch.no_grad():
        retriever.scale.log.add_(0.5)
    save_parts(retriever.trained_parts(), tmp_path)
    assert {part.file for part in retriever.trained_parts()} == {"question_encoder", "scale.safetensors"}
    again = made_again(retriever, tmp_path, cosines)
    assert_close(again(again.prepare(QUESTIONS), 3).scores, retriever(retriever.prepare(QUESTIONS), 3).scores)
    assert number_of(again.scale) == pytest.approx(5 * math.exp(0.5))


def made_again(retriever, folder, index):
    from omegaconf import OmegaConf

    root = {"folder": str(folder), "index": str(index.folder), "node": retriever.description()}
    made = instantiate(OmegaConf.to_container(OmegaConf.create(root), resolve=True)["node"])
    load_parts(made.trained_parts(), folder)
    return made.eval()


@pytest.mark.parametrize("scale", [0, -1.0, math.inf, math.nan, "20", True])
def test_what_is_no_scale(encoder, cosines, scale):
    with pytest.raises(UserError, match=r"retriever\.scale=.* is not a scale: give a number above 0"):
        DenseRetriever(encoder, cosines, scale=scale)


def test_a_learned_scale_starts_above_zero():
    with pytest.raises(UserError, match="cannot start at 0"):
        LearnedScale(0)


# -- whose vectors --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("other", "match"),
    [
        ({"pooling": "max"}, "with pooling='max', but the question encoder reads with pooling='mean'"),
        ({"normalize": False}, "with normalize=False, but the question encoder reads with normalize=True"),
        ({"passage_prompt": ""}, "with prompt='', but the question encoder reads with prompt='the '"),
    ],
)
def test_an_index_that_was_read_otherwise_is_refused(encoder, cosines, folder, tmp_path, other, match):
    read_otherwise = an_index(tmp_path / "index", folder, **other)
    with pytest.raises(UserError, match=match):
        DenseRetriever(encoder, read_otherwise)
    retriever = DenseRetriever(encoder, cosines)
    with pytest.raises(UserError, match=match):
        retriever.swap(read_otherwise)
    assert retriever.index is cosines


def test_dprs_index_and_a_sentence_encoder_do_not_fit(encoder, cosines, index, question_encoder):
    with pytest.raises(
        UserError, match="with pooling='cls', but the question encoder reads with pooling='mean'"
    ):
        DenseRetriever(encoder, index)
    with pytest.raises(
        UserError, match="with pooling='mean', but the question encoder reads with pooling='cls'"
    ):
        DenseRetriever(question_encoder, cosines)


def test_other_weights_are_told_unless_the_encoder_knows_its_partner(encoder, cosines, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        DenseRetriever(encoder, cosines)
        assert not caplog.text  # one encoder for both sides
        with torch.no_grad():
            next(encoder.parameters()).mul_(1.1)
        retriever = DenseRetriever(encoder, cosines)
    assert "whose weights differ from the question encoder's" in caplog.text
    caplog.clear()
    (part,) = retriever.trained_parts()
    part.save(tmp_path / "trained")
    with caplog.at_level(logging.WARNING):
        DenseRetriever.from_pretrained(tmp_path / "trained", cosines.folder)
    assert not caplog.text


def test_a_trained_encoder_refuses_vectors_of_other_weights(encoder, cosines, folder, tmp_path):
    (part,) = DenseRetriever(encoder, cosines).trained_parts()
    part.save(tmp_path / "trained")
    other = an_index(tmp_path / "index", folder, max_length=30)
    with pytest.raises(UserError, match="but the question encoder belongs"):
        DenseRetriever.from_pretrained(tmp_path / "trained", other.folder)


def test_a_question_encoder_remembers_the_scale_it_was_trained_with(encoder, cosines, tmp_path):
    """What p(z|x) was a softmax of does not get lost between two trainings; a number that is given goes before."""
    assert encoder.scale is None and DenseRetriever(encoder, cosines).scale == 20.0
    learned = DenseRetriever(encoder, cosines, scale=LearnedScale(33.0))
    learned.trained_parts()[0].save(tmp_path / "trained")
    again = DenseRetriever.from_pretrained(tmp_path / "trained", cosines.folder)
    assert again.scale == pytest.approx(33.0)
    assert_close(again(again.prepare(QUESTIONS), 3).scores, learned(learned.prepare(QUESTIONS), 3).scores)
    given = DenseRetriever.from_pretrained(tmp_path / "trained", cosines.folder, scale=7.0)
    assert given.scale == 7.0
    hybrid = HybridRetriever.from_pretrained(tmp_path / "trained", cosines.folder, BM25.build)
    assert hybrid.scale == pytest.approx(33.0)
    pair = BiEncoder(sentence_encoders(tmp_path / "trained"), scale=5.0)
    assert pair.question_encoder.scale is None  # of a training that begins anew
    save_parts(pair.trained_parts(), tmp_path / "dpr")
    assert open_question_encoder(tmp_path / "dpr" / "question_encoder").scale == 5.0


def test_dprs_encoder_remembers_its_scale_too(question_encoder, index, tmp_path):
    assert DenseRetriever(question_encoder, index).scale == 1.0
    DenseRetriever(question_encoder, index, scale=0.5).trained_parts()[0].save(tmp_path / "trained")
    assert DenseRetriever.from_pretrained(tmp_path / "trained", index.folder).scale == 0.5


@pytest.mark.parametrize("unit", [True, False])
def test_cosines_and_inner_products_of_nobody_knows_whose_vectors_are_told_apart(
    encoder, question_encoder, cosines, index, tmp_path, unit
):
    """Vectors that were taken over say how long they are, and so which question encoder is not theirs."""
    of_unit_length = cosines if unit else index
    vectors = of_unit_length.vectors(np.arange(ALL))
    info = EncoderInfo("somebody's", UNKNOWN, UNKNOWN)
    store = PassageStore.write(
        (Passage(str(n), *p) for n, p in enumerate(PASSAGES)), tmp_path / "i" / "passages"
    )
    shutil.copytree(of_unit_length.folder / "vectors", tmp_path / "i" / "vectors")
    plan = tmp_path / "i" / "vectors" / "plan.json"
    held = json.loads(plan.read_text())
    plan.write_text(json.dumps(held | {"encoder": asdict(info), "corpus_sha256": store.sha256}))
    build(tmp_path / "i", show_progress=False)
    taken_over = Index.open(tmp_path / "i")
    assert taken_over.manifest.metric == ("cosine" if unit else "inner product")
    np.testing.assert_array_equal(taken_over.vectors(np.arange(ALL)), vectors)
    fits, other = (encoder, question_encoder) if unit else (question_encoder, encoder)
    DenseRetriever(fits, taken_over)
    found = "of unit length, but .* differ: " if unit else "that differ in length, but .* have unit length: "
    with pytest.raises(UserError, match=f"holds vectors {found}.*encoder.normalize={str(unit).lower()}"):
        DenseRetriever(other, taken_over)


# -- with BM25 ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("scale", "weight"), [(20.0, 1.0), (1.0, 0.2), (3.0, 10.0)])
@pytest.mark.parametrize("n_docs", [1, 4, ALL])
def test_all_candidates_are_put_in_order_by_the_sum(encoder, cosines, scale, weight, n_docs):
    retriever = HybridRetriever(encoder, cosines, BM25.build, scale=scale, weight=weight)
    found = retriever(retriever.prepare(QUESTIONS), n_docs)
    expected = scale * cosine(encoder, cosines) + weight * bm25(cosines)
    scores, rows = expected.sort(dim=1, descending=True, stable=True)
    assert found.rows.tolist() == rows[:, :n_docs].tolist()
    assert_close(found.scores, scores[:, :n_docs], rtol=1e-5, atol=1e-5)
    assert_close(found.doc_logprobs, scores[:, :n_docs].log_softmax(dim=1), rtol=1e-5, atol=1e-5)
    assert retriever.find(retriever.prepare(QUESTIONS), n_docs).tolist() == found.rows.tolist()


def test_the_candidates_are_the_best_of_both(encoder, cosines):
    """With L = 1 there are two a question, or one that both searches put first; the rest are misses."""
    retriever = HybridRetriever(encoder, cosines, BM25.build, candidates=1)
    found = retriever(retriever.prepare(QUESTIONS), 1)
    dense, lexical = cosine(encoder, cosines), bm25(cosines)
    both = [{int(a), int(b)} for a, b in zip(dense.argmax(dim=1), lexical.argmax(dim=1), strict=True)]
    total = 20 * dense + lexical
    assert any(len(each) == 2 for each in both)
    for row, candidates in enumerate(both):
        assert found.rows[row, 0] == max(candidates, key=lambda each: total[row, each].item())


def test_the_gradient_reaches_the_encoder_and_both_weights(encoder, cosines):
    retriever = HybridRetriever(
        encoder, cosines, BM25.build, scale=LearnedScale(4.0), weight=LearnedScale(0.5)
    )
    found = retriever(retriever.prepare(QUESTIONS), 4)
    weights = torch.randn(found.scores.shape)
    (weights * found.doc_logprobs).sum().backward()
    learned = {name: w.grad.clone() for name, w in retriever.named_parameters() if w.grad is not None}
    retriever.zero_grad()
    s, w = retriever.scale.log.exp(), retriever.weight.log.exp()
    logits = (s * cosine(encoder, cosines) + w * bm25(cosines)).gather(1, torch.from_numpy(found.rows))
    (weights * logits.log_softmax(dim=1)).sum().backward()
    assert {"scale.log", "weight.log"} < set(learned)
    for name, weight in retriever.named_parameters():
        if name in learned:
            assert_close(learned[name], weight.grad, rtol=1e-3, atol=1e-5, msg=name)


def test_a_hybrid_is_saved_and_made_again(encoder, cosines, tmp_path):
    build = partial(BM25.build, k1=1.2)
    retriever = HybridRetriever(
        encoder, cosines, build, weight=LearnedScale(2.0), candidates=3, null_document=NullBias(5.0)
    )
    save_parts(retriever.trained_parts(), tmp_path)
    again = made_again(retriever, tmp_path, cosines)
    found, expected = (each(each.prepare(QUESTIONS), 2) for each in (again, retriever))
    assert found.rows.tolist() == expected.rows.tolist() and (found.rows[:, 2] == -1).all()
    assert_close(found.scores, expected.scores)
    assert again.identity() == retriever.identity() and again.candidates == 3
    assert again.identity() != HybridRetriever(encoder, cosines, build, candidates=3).identity()


def test_swapping_exchanges_both_searches(encoder, cosines, folder, tmp_path):
    retriever = HybridRetriever(encoder, cosines, BM25.build)
    before = retriever(retriever.prepare(QUESTIONS), 3)
    retriever.swap(an_index(tmp_path / "other", folder, PASSAGES[::-1]))
    after = retriever(retriever.prepare(QUESTIONS), 3)
    assert after.rows.tolist() == (ALL - 1 - before.rows).tolist()
    assert_close(after.scores, before.scores)


def test_mistakes_in_a_hybrid(encoder, cosines):
    with pytest.raises(UserError, match=r"retriever\.candidates=0: give 1 or more"):
        HybridRetriever(encoder, cosines, BM25.build, candidates=0)
    with pytest.raises(UserError, match=r"retriever\.weight=-1 is not a scale"):
        HybridRetriever(encoder, cosines, BM25.build, weight=-1)
    retriever = HybridRetriever(encoder, cosines, BM25.build)
    with pytest.raises(UserError, match=r"K=8 passages cannot be found in an index of 7"):
        retriever(retriever.prepare(QUESTIONS), 8)

"""Section 2.2: p_η(z|x) from an index, and how it is learned."""

import numpy as np
import pytest
import torch
from conftest import (
    PASSAGES,
    QUESTIONS,
    bert_tokenizer,
    build_tiny_index,
    tiny_passage_encoder,
    tiny_question_encoder,
)
from torch.testing import assert_close

from rag.encoders.dpr import PassageEncoder, QuestionEncoder
from rag.errors import UserError
from rag.index.faiss_types import IndexType
from rag.index.passage import Passage
from rag.retrievers.dense import DenseRetriever
from rag.retrievers.lexical import BM25
from rag.retrievers.lexical_retriever import LexicalRetriever


def all_scores(retriever: DenseRetriever, passage_encoder: PassageEncoder) -> torch.Tensor:
    """q(x)ᵀd(z) for every question and passage, without the index."""
    passages = [Passage(str(number), *passage) for number, passage in enumerate(PASSAGES)]
    vectors = torch.from_numpy(passage_encoder.encode(passages))
    return retriever.question_encoder(**retriever.question_encoder.tokenize(QUESTIONS)) @ vectors.T


@pytest.mark.parametrize("n_docs", [1, 3, len(PASSAGES)])
def test_rows_and_scores_equal_argsort_over_all_passages(retriever, passage_encoder, n_docs):
    retrieved = retriever(retriever.prepare(QUESTIONS), n_docs)
    scores, rows = all_scores(retriever, passage_encoder).sort(dim=1, descending=True)
    assert retrieved.rows.tolist() == rows[:, :n_docs].tolist()
    assert_close(retrieved.scores, scores[:, :n_docs])
    assert_close(retrieved.doc_logprobs, scores[:, :n_docs].log_softmax(dim=1))


def test_a_batch_equals_its_questions_one_by_one(retriever):
    together = retriever(retriever.prepare(QUESTIONS), 4)
    for row, question in enumerate(QUESTIONS):
        alone = retriever(retriever.prepare([question]), 4)
        assert alone.rows.tolist() == together.rows[row : row + 1].tolist()
        assert_close(alone.scores, together.scores[row : row + 1])


def test_the_gradient_reaches_the_question_encoder_through_the_inner_product(
    retriever, passage_encoder, index
):
    """The same gradient for every weight as from q(x)ᵀd(z) written out; the vectors stay as they are."""
    before = index.vectors(np.arange(len(PASSAGES)))
    retrieved = retriever(retriever.prepare(QUESTIONS), 4)
    weights = torch.randn(retrieved.scores.shape)
    (retrieved.doc_logprobs * weights).sum().backward()
    learned = {name: w.grad.clone() for name, w in retriever.question_encoder.named_parameters()}
    retriever.zero_grad()

    written_out = all_scores(retriever, passage_encoder).gather(1, torch.from_numpy(retrieved.rows))
    (written_out.log_softmax(dim=1) * weights).sum().backward()
    for name, weight in retriever.question_encoder.named_parameters():
        assert_close(learned[name], weight.grad, rtol=1e-4, atol=1e-5, msg=name)
    assert any(gradient.abs().max() > 1e-3 for gradient in learned.values())
    assert np.array_equal(index.vectors(np.arange(len(PASSAGES))), before)
    assert all(weight.grad is None for weight in passage_encoder.parameters())


def test_frozen_gives_the_same_scores_without_gradient_or_dropout(question_encoder, index):
    trained = DenseRetriever(question_encoder, index)(
        DenseRetriever(question_encoder, index).prepare(QUESTIONS), 3
    )
    frozen = DenseRetriever(question_encoder, index, trainable=False).train()
    retrieved = frozen(frozen.prepare(QUESTIONS), 3)
    assert not retrieved.scores.requires_grad and not any(w.requires_grad for w in frozen.parameters())
    assert not any(module.training for module in frozen.modules())
    assert_close(retrieved.scores, trained.scores.detach())
    assert trained.scores.requires_grad


def test_misses_are_minus_infinity_and_take_no_part(tmp_path, question_encoder):
    """An index of two cells of which one is searched finds only its own passages."""
    tokenizer = bert_tokenizer()
    encoder = PassageEncoder(tiny_passage_encoder(len(tokenizer)), tokenizer)
    passages = [(title, f"{text} {other}") for title, text in PASSAGES for other, _ in PASSAGES] * 2
    index = build_tiny_index(
        tmp_path / "cells", encoder, passages, IndexType("IVF2,Flat", nprobe=1, refine=1)
    )
    retriever = DenseRetriever(question_encoder, index)
    retrieved = retriever(retriever.prepare(QUESTIONS), len(passages))
    missed = torch.from_numpy(retrieved.rows < 0)
    assert 0 < missed.sum() < missed.numel()
    assert (retrieved.scores[missed] == -torch.inf).all() and retrieved.scores[~missed].isfinite().all()
    assert_close(retrieved.doc_logprobs.exp().sum(dim=1), torch.ones(len(QUESTIONS)))
    retrieved.doc_logprobs[~missed].sum().backward()
    assert all(w.grad.isfinite().all() for w in question_encoder.parameters() if w.grad is not None)


def test_more_passages_than_the_index_holds_are_refused(retriever):
    with pytest.raises(UserError, match="K=8 passages cannot be found in an index of 7"):
        retriever(retriever.prepare(QUESTIONS), 8)


def test_an_index_of_another_dimension_is_refused(index):
    tokenizer = bert_tokenizer()
    narrow = QuestionEncoder(tiny_question_encoder(len(tokenizer), projection_dim=8), tokenizer)
    with pytest.raises(UserError, match="vectors of 16 dimensions but the question encoder makes 8"):
        DenseRetriever(narrow, index)


def test_an_index_of_another_passage_encoder_is_refused(question_encoder, index, passage_encoder):
    question_encoder.model.config.passage_encoder = "0123456789abcdef"
    with pytest.raises(UserError, match="weights 0123456789abcdef"):
        DenseRetriever(question_encoder, index)
    question_encoder.model.config.passage_encoder = passage_encoder.fingerprint()
    assert DenseRetriever(question_encoder, index).index is index


def test_swapping_the_memory(tmp_path, retriever, passage_encoder):
    other = build_tiny_index(tmp_path / "other", passage_encoder, PASSAGES[::-1])
    before = retriever(retriever.prepare(QUESTIONS), 3)
    retriever.swap(other)
    after = retriever(retriever.prepare(QUESTIONS), 3)
    assert after.rows.tolist() == (len(PASSAGES) - 1 - before.rows).tolist()
    assert_close(after.scores, before.scores)


def test_swapping_in_an_index_that_does_not_fit_changes_nothing(tmp_path, retriever):
    tokenizer = bert_tokenizer()
    narrow = PassageEncoder(tiny_passage_encoder(len(tokenizer), projection_dim=8), tokenizer)
    before = retriever.index
    with pytest.raises(UserError, match="vectors of 8 dimensions but the question encoder makes 16"):
        retriever.swap(build_tiny_index(tmp_path / "narrow", narrow))
    assert retriever.index is before


def test_swapping_in_an_index_of_another_encoder_is_refused(tmp_path, retriever):
    """Of the same dimension, and the encoder's config names no partner: it belongs to the index it was used with."""
    tokenizer = bert_tokenizer()
    other = PassageEncoder(tiny_passage_encoder(len(tokenizer)), tokenizer)
    before = retriever.index
    with pytest.raises(
        UserError, match=r"other was embedded by tiny \(weights .*\) and .*: a question encoder fits one"
    ):
        retriever.swap(build_tiny_index(tmp_path / "other", other))
    assert retriever.index is before


def test_a_trained_encoder_remembers_whose_vectors_it_belongs_to(tmp_path, retriever):
    """The hub's question encoders name nobody; once trained over an index and saved, they refuse another's."""
    (part,) = retriever.trained_parts()
    part.save(tmp_path / "trained")
    assert DenseRetriever.from_pretrained(tmp_path / "trained", retriever.index.folder).index.dim == 16
    tokenizer = bert_tokenizer()
    other = PassageEncoder(tiny_passage_encoder(len(tokenizer)), tokenizer)
    build_tiny_index(tmp_path / "other", other)
    with pytest.raises(UserError, match="was embedded by tiny .* but the question encoder belongs"):
        DenseRetriever.from_pretrained(tmp_path / "trained", tmp_path / "other")


def test_swapping_the_passages_of_a_lexical_retriever(tmp_path, index, passage_encoder):
    other = build_tiny_index(tmp_path / "other", passage_encoder, PASSAGES[::-1])
    retriever = LexicalRetriever.over(BM25.build, index.folder)
    before = retriever(retriever.prepare(QUESTIONS), 1)
    assert before.rows[:, 0].tolist() == [0, 2, 4]
    retriever.swap(other)
    after = retriever(retriever.prepare(QUESTIONS), 1)
    assert after.rows[:, 0].tolist() == [6, 4, 2] and retriever.index is other
    assert_close(after.scores, before.scores)
    with pytest.raises(UserError, match="give `build` to exchange its passages"):
        LexicalRetriever(retriever.scorer, other).swap(index)


def test_loading_from_folders(tmp_path, retriever, index):
    retriever.question_encoder.save_pretrained(tmp_path / "encoder")
    loaded = DenseRetriever.from_pretrained(tmp_path / "encoder", index.folder, trainable=False)
    expected = retriever(retriever.prepare(QUESTIONS), 3)
    retrieved = loaded(loaded.prepare(QUESTIONS), 3)
    assert retrieved.rows.tolist() == expected.rows.tolist() and not loaded.trainable


class SharedWords:
    """A lexical scorer small enough to check by eye: how many words question and passage share."""

    def __init__(self, passages):
        self.words = [set(f"{p.title} {p.text}".lower().split()) for p in passages]

    def search(self, questions: list[str], k: int):
        shared = np.array([[len(words & set(q.lower().split())) for words in self.words] for q in questions])
        rows = np.argsort(-shared, axis=1, kind="stable")[:, :k]
        return np.take_along_axis(shared, rows, axis=1).astype(np.float32), rows


def test_lexical_scores_are_the_logits_of_the_prior(index):
    """The passage on Rome shares "runs", "through" and "Rome" with the question; two more share "river"."""
    retriever = LexicalRetriever.over(SharedWords, index.folder)
    retrieved = retriever(retriever.prepare([QUESTIONS[1]]), 3)
    assert retrieved.rows[0, 0] == 2 and retrieved.scores[0].tolist() == [3.0, 1.0, 1.0]
    assert_close(retrieved.doc_logprobs, torch.tensor([[3.0, 1.0, 1.0]]).log_softmax(dim=1))
    assert not list(retriever.parameters())

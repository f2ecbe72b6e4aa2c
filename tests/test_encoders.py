"""Section 2.2: DPR's encoders, against Hugging Face's own forward pass on one text at a time."""

import copy
import logging

import numpy as np
import pytest
import torch
from conftest import (
    PASSAGES,
    QUESTIONS,
    bert_tokenizer,
    tiny_dpr_config,
    tiny_passage_encoder,
    tiny_question_encoder,
)
from torch.testing import assert_close
from transformers import AutoConfig, AutoModel

from rag.encoders.dpr import PassageEncoder, QuestionEncoder
from rag.encoders.protocol import encode, of_like_length
from rag.encoders.reduced import InHalf
from rag.errors import UserError
from rag.index.passage import Passage
from rag.training.dpr import bert_encoders


def passages() -> list[Passage]:
    return [Passage(str(number), *passage) for number, passage in enumerate(PASSAGES)]


def test_a_question_is_encoded_alone_as_the_state_of_cls(question_encoder):
    vectors = question_encoder(**question_encoder.tokenize(QUESTIONS))
    for vector, question in zip(vectors, QUESTIONS, strict=True):
        tokens = question_encoder.tokenizer(question, return_tensors="pt")
        bert = question_encoder.model.question_encoder.bert_model
        assert_close(vector, bert(**tokens).last_hidden_state[0, 0])
    assert question_encoder.dim == 16


def test_a_passage_is_encoded_as_the_pair_of_title_and_text(passage_encoder):
    tokens = passage_encoder.tokenize(passages())
    tokenizer = passage_encoder.tokenizer
    title, text = PASSAGES[0]
    row = tokens["input_ids"][0][tokens["attention_mask"][0].bool()].tolist()
    a, b = (tokenizer(part, add_special_tokens=False)["input_ids"] for part in (title, text))
    cls, sep = tokenizer.cls_token_id, tokenizer.sep_token_id
    assert row == [cls, *a, sep, *b, sep]
    assert tokens["token_type_ids"][0][: len(row)].tolist() == [0] * (len(a) + 2) + [1] * (len(b) + 1)
    vectors = passage_encoder.encode(passages())
    assert vectors.dtype == np.float32 and vectors.shape == (len(PASSAGES), 16)
    bert = passage_encoder.model.ctx_encoder.bert_model
    for vector, (title, text) in zip(vectors, PASSAGES, strict=True):
        alone = bert(**tokenizer(title, text, return_tensors="pt")).last_hidden_state[0, 0]
        assert_close(torch.from_numpy(vector), alone.detach())


def test_passages_of_like_length_are_encoded_together_on_a_cpu(passage_encoder, monkeypatch):
    mask = torch.tensor([[1, 1, 0, 0, 0], [1, 1, 1, 1, 0], [1, 0, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 0, 0, 0]])
    parts = [(rows.tolist(), int(columns.sum())) for rows, columns in of_like_length(mask, 6)]
    assert parts == [([1], 4), ([3, 0], 3), ([4, 2], 2)]
    assert [rows.tolist() for rows, _ in of_like_length(mask, 1)] == [[1], [3], [0], [4], [2]]
    left = torch.tensor([[0, 0, 1, 1], [0, 0, 0, 1], [0, 1, 1, 1]])  # padded in front
    assert [columns.tolist() for _, columns in of_like_length(left, 4)] == [
        [False, True, True, True],
        [False, False, True, True],
    ]

    shapes, forward = [], passage_encoder.forward
    whole = passage_encoder.encode(passages())
    monkeypatch.setattr("rag.encoders.protocol.TOKENS_AT_ONCE", 32)
    threads = torch.get_num_threads()
    monkeypatch.setattr(
        passage_encoder,
        "forward",
        lambda **tokens: (shapes.append(tuple(tokens["input_ids"].shape)), forward(**tokens))[1],
    )
    np.testing.assert_allclose(passage_encoder.encode(passages()), whole, rtol=1e-5, atol=1e-6)
    assert len(shapes) > 1 and sum(rows for rows, _ in shapes) == len(PASSAGES)
    assert all(rows * length <= 32 * threads or rows == 1 for rows, length in shapes)
    assert shapes[0][1] > shapes[-1][1]


def test_a_long_passage_is_cut_to_what_the_encoder_has_positions_for(passage_encoder):
    assert passage_encoder.max_length == 64
    tokens = passage_encoder.tokenize([Passage("1", "Paris", "the river " * 100)])
    assert tokens["input_ids"].shape == (1, 64)
    assert tokens["input_ids"][0, -1] == passage_encoder.tokenizer.sep_token_id


def test_a_question_longer_than_the_encoder_is_sought_by_its_beginning_with_one_warning(caplog):
    tokenizer = bert_tokenizer()
    encoder = QuestionEncoder(tiny_question_encoder(len(tokenizer)), tokenizer, max_length=6)
    long = "what is the capital of France and of Italy"
    with caplog.at_level(logging.WARNING):
        encoder.tokenize(["what is the capital"])  # exactly six tokens
        assert not caplog.records
        for _ in range(2):
            cut = encoder.tokenize([long])
    assert torch.equal(cut["input_ids"], encoder.tokenize(["what is the capital"])["input_ids"])
    assert len(caplog.records) == 1
    assert "longer than the question encoder's 6 tokens" in caplog.records[0].getMessage()


def test_the_fingerprint_tells_weights_apart():
    tokenizer = bert_tokenizer()
    encoder = PassageEncoder(tiny_passage_encoder(len(tokenizer)), tokenizer)
    same = copy.deepcopy(encoder)
    assert same.fingerprint() == encoder.fingerprint()
    with torch.no_grad():
        next(iter(same.model.parameters()))[0, 0] += 1e-6
    assert same.fingerprint() != encoder.fingerprint()


def test_save_and_load(tmp_path, question_encoder):
    question_encoder.save_pretrained(tmp_path / "encoder")
    loaded = QuestionEncoder.from_pretrained(tmp_path / "encoder", max_length=32)
    assert loaded.max_length == 32
    assert loaded.fingerprint() == question_encoder.fingerprint()
    assert torch.equal(
        loaded.tokenize(QUESTIONS)["input_ids"], question_encoder.tokenize(QUESTIONS)["input_ids"]
    )


def test_a_folder_that_holds_no_encoder(tmp_path):
    with pytest.raises(UserError, match="holds no question encoder with its tokenizer"):
        QuestionEncoder.from_pretrained(tmp_path)


def test_a_tokenizer_of_another_vocabulary():
    tokenizer = bert_tokenizer()
    with pytest.raises(UserError, match="tokens but the DPRQuestionEncoder only 20 embeddings"):
        QuestionEncoder(tiny_question_encoder(20), tokenizer)


def test_a_projection_gives_the_vectors_dimension():
    tokenizer = bert_tokenizer()
    encoder = QuestionEncoder(tiny_question_encoder(len(tokenizer), projection_dim=8), tokenizer)
    assert encoder.dim == 8
    assert encoder(**encoder.tokenize(QUESTIONS)).shape == (3, 8)


@pytest.mark.parametrize("kind", ["xlm-roberta", "roberta", "camembert"])
def test_an_encoder_that_is_no_bert_is_refused(tmp_path, kind):
    """transformers would load its weights into BERT, with other positions: other vectors, and not a word."""
    tokenizer = bert_tokenizer()
    sizes = tiny_dpr_config(len(tokenizer)).to_dict()
    config = AutoConfig.for_model(kind, **{key: each for key, each in sizes.items() if key != "model_type"})
    AutoModel.from_config(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=f"holds a model of type {kind}: a BertModel is read from type bert"):
        bert_encoders(tmp_path)
    with pytest.raises(UserError, match=f"holds a model of type {kind}: a DPRQuestionEncoder is read from"):
        QuestionEncoder.from_pretrained(tmp_path)
    with pytest.raises(UserError, match=f"a \\w+Model holds a model of type {kind}"):
        PassageEncoder(AutoModel.from_config(config), tokenizer)


@pytest.mark.parametrize("side", ["padding_side", "truncation_side"])
def test_a_tokenizer_that_pads_or_cuts_at_the_left_gives_the_same_vectors(side):
    tokenizer = bert_tokenizer()
    question = QuestionEncoder(tiny_question_encoder(len(tokenizer)), tokenizer, max_length=8)
    passage = PassageEncoder(tiny_passage_encoder(len(tokenizer)), tokenizer, max_length=16)
    vectors = question(**question.tokenize(QUESTIONS)).detach(), passage.encode(passages())
    left = bert_tokenizer()
    setattr(left, side, "left")
    question = QuestionEncoder(question.model, left, max_length=8)
    setattr(left, side, "left")
    passage = PassageEncoder(passage.model, left, max_length=16)
    assert_close(question(**question.tokenize(QUESTIONS)).detach(), vectors[0])
    np.testing.assert_allclose(passage.encode(passages()), vectors[1], rtol=1e-5)


def test_a_folder_that_does_not_exist_is_called_that(tmp_path):
    """Not what the hub has to say of a path that it takes for a name."""
    for folder in (tmp_path / "none", tmp_path / "a" / "b"):
        with pytest.raises(UserError, match=r"holds no question encoder .*\(there is no such folder\)"):
            QuestionEncoder.from_pretrained(folder)


@pytest.mark.parametrize("beyond", [None, "states", "weights"])
def test_weights_in_float16(passage_encoder, beyond):
    """As on a GPU. What is beyond its range is encoded in the usual precision; a passage that is cut counts once."""
    encoder = copy.deepcopy(passage_encoder)
    encoder.max_length, encoder.cut = 6, 0
    with torch.no_grad():
        dense = encoder.bert.encoder.layer[0].intermediate.dense
        if beyond == "states":
            dense.weight *= 6e4 / dense.weight.abs().amax()
            dense.bias += 3e4
        elif beyond == "weights":
            dense.weight *= 7e4 / dense.weight.abs().amax()
    exact, info = encoder.encode(passages()), encoder.describe()
    cut, encoder.cut = encoder.cut, 0
    half = InHalf(encoder)
    vectors = half.encode(passages())
    assert half.describe() == info and vectors.dtype == np.float32 and encoder.cut == cut > 0
    cosine = (vectors * exact).sum(1) / np.linalg.norm(vectors, axis=1) / np.linalg.norm(exact, axis=1)
    assert np.isfinite(vectors).all() and (1 - cosine < 1e-5).all()
    assert next(encoder.parameters()).dtype == (torch.float32 if beyond == "weights" else torch.float16)
    if beyond == "states":
        assert not np.isfinite(encode(encoder, passages())).all()

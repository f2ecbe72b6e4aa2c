"""DPR encoders of one layer (rag/scratch) and encoder.json, by which a folder names the class that opens it."""

import json

import pytest
import torch
from conftest import PASSAGES, QUESTIONS, bert_tokenizer, tiny_passage_encoder, tiny_question_encoder
from torch.testing import assert_close

from rag.encoders import (
    EncoderSettings,
    PassageEncoder,
    QuestionEncoder,
    open_passage_encoder,
    open_question_encoder,
)
from rag.encoders.named_class import ENCODER_FILE, write_class
from rag.errors import UserError
from rag.index.passage import Passage
from rag.scratch.models import new_encoders
from rag.scratch.one_layer import OneLayerPassageEncoder, OneLayerQuestionEncoder

PASSAGE_ROWS = [Passage(str(number), *passage) for number, passage in enumerate(PASSAGES)]


@pytest.fixture
def passage_encoder() -> OneLayerPassageEncoder:
    tokenizer = bert_tokenizer()
    model = tiny_passage_encoder(len(tokenizer), num_hidden_layers=1)
    torch.nn.init.normal_(model.ctx_encoder.bert_model.encoder.layer[0].attention.self.value.bias)
    return OneLayerPassageEncoder(model, tokenizer)


@pytest.fixture
def question_encoder() -> OneLayerQuestionEncoder:
    tokenizer = bert_tokenizer()
    return OneLayerQuestionEncoder(tiny_question_encoder(len(tokenizer), num_hidden_layers=1), tokenizer)


def test_the_vectors_and_gradients_are_transformers_own(passage_encoder):
    model = passage_encoder.model
    tokens = passage_encoder.tokenize(PASSAGE_ROWS)
    assert not tokens["attention_mask"].all()  # some are padded
    weights = torch.randn(len(PASSAGES), 16)
    vectors, expected = passage_encoder(**tokens), model(**tokens).pooler_output
    assert_close(vectors, expected)
    parameters = dict(model.named_parameters())
    ours = torch.autograd.grad((vectors * weights).sum(), list(parameters.values()))
    theirs = torch.autograd.grad((expected * weights).sum(), list(parameters.values()))
    for name, a, b in zip(parameters, ours, theirs, strict=True):
        assert_close(a, b, rtol=1e-4, atol=2e-5, msg=name)


def test_the_paper_encoder_is_transformers_whatever_its_depth(passage_encoder, monkeypatch):
    """DPR's own class takes no shortcut."""
    monkeypatch.setattr("rag.scratch.one_layer.one_layer_state", lambda *_: pytest.fail("the shortcut"))
    PassageEncoder(passage_encoder.model, passage_encoder.tokenizer).encode(PASSAGE_ROWS)


def test_a_saved_one_opens_with_its_shortcut_and_as_dpr_without(passage_encoder, question_encoder, tmp_path):
    """Folders of older runs have no encoder.json, and give the same vectors."""
    passage_encoder.eval().save_pretrained(tmp_path / "passage")
    question_encoder.eval().save_pretrained(tmp_path / "question")
    for with_class in (True, False):
        passage = open_passage_encoder(tmp_path / "passage").eval()
        question = open_question_encoder(tmp_path / "question").eval()
        assert isinstance(passage, OneLayerPassageEncoder) is with_class
        assert isinstance(question, OneLayerQuestionEncoder) is with_class
        assert passage.describe().name == str(tmp_path / "passage")
        assert passage.fingerprint() == passage_encoder.fingerprint()
        assert_close(passage.encode(PASSAGE_ROWS), passage_encoder.encode(PASSAGE_ROWS))
        tokens = question.tokenize(QUESTIONS)
        assert_close(question(**tokens), question_encoder(**tokens))
        if with_class:
            for side in ("question", "passage"):
                (tmp_path / side / ENCODER_FILE).unlink()


def test_the_wrong_side_is_refused_as_before(passage_encoder, tmp_path):
    passage_encoder.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="DPRQuestionEncoder"):
        open_question_encoder(tmp_path)


def test_only_models_of_one_layer_have_the_shortcut():
    for layers, kind in [(1, OneLayerQuestionEncoder), (2, QuestionEncoder)]:
        assert type(new_encoders(bert_tokenizer(), width=16, feedforward=32, layers=layers)[0]) is kind


class Reversed(PassageEncoder):
    """An encoder of one's own: every vector back to front."""

    def encode(self, passages):
        return super().encode(passages)[:, ::-1].copy()

    def save_pretrained(self, folder) -> None:
        super().save_pretrained(folder)
        write_class(folder, passage=type(self).from_pretrained)


def test_a_class_of_ones_own_opens_by_its_folder(passage_encoder, tmp_path, monkeypatch):
    monkeypatch.setenv("RAG_TRUST", "1")
    mine = Reversed(passage_encoder.model, passage_encoder.tokenizer)
    mine.save_pretrained(tmp_path)
    opened = open_passage_encoder(tmp_path)
    assert isinstance(opened, Reversed)
    assert_close(opened.encode(PASSAGE_ROWS), passage_encoder.encode(PASSAGE_ROWS)[:, ::-1].copy())
    with pytest.raises(UserError, match="encoder.pooling=mean is given, but .* encoder.json opens"):
        open_passage_encoder(tmp_path, EncoderSettings(pooling="mean"))
    for target, sentence in {
        "no_such_module.Encoder": "names no_such_module.Encoder, which is not there",
        "test_one_layer.NoSuchClass": "names test_one_layer.NoSuchClass, which is not there",
    }.items():
        (tmp_path / ENCODER_FILE).write_text(json.dumps({"passage": target}))
        with pytest.raises(UserError, match=sentence):
            open_passage_encoder(tmp_path)

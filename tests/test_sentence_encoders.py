"""Section 2.2 with the bi-encoders of today: sentence-transformers' vectors, from its folders and transformers'."""

import hashlib
import json
import logging
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import PASSAGES, QUESTIONS, bert_tokenizer, tiny_question_encoder
from safetensors.torch import load_file
from sentence_folders import tiny_transformer, write_modules, written_out
from torch.testing import assert_close

from rag.encoders.dpr import PassageEncoder, QuestionEncoder
from rag.encoders.opening import open_embedder, open_passage_encoder, open_question_encoder
from rag.encoders.pooling import POOLINGS, pool
from rag.encoders.sentence_transformer import (
    BOTH_WAYS,
    CAUSAL,
    SentencePassageEncoder,
    SentenceQuestionEncoder,
)
from rag.encoders.settings import EncoderSettings
from rag.errors import UserError
from rag.index.passage import Passage

LONG = "the river " * 30
TEXTS = [*QUESTIONS, LONG]
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def vectors(encoder, texts=TEXTS):
    with torch.no_grad():
        return encoder.eval()(**encoder.tokenize(texts))


def passages():
    return [Passage(str(number), *passage) for number, passage in enumerate(PASSAGES)]


def test_poolings_by_hand():
    states = torch.tensor([[[1.0, -1.0], [3.0, -5.0], [9.0, 9.0]], [[2.0, 0.0], [4.0, 1.0], [0.0, 5.0]]])
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    expected = {
        "cls": [[1, -1], [2, 0]],
        "last": [[3, -5], [0, 5]],
        "mean": [[2, -3], [2, 2]],
        "max": [[3, -1], [4, 5]],
        "mean_sqrt_len": [[4 / 2**0.5, -6 / 2**0.5], [6 / 3**0.5, 6 / 3**0.5]],
    }
    assert set(expected) == set(POOLINGS)
    for pooling, by_hand in expected.items():
        assert_close(pool(states, mask, pooling), torch.tensor(by_hand, dtype=torch.float32), msg=pooling)


@pytest.mark.parametrize("kind", [*BOTH_WAYS, *CAUSAL])
def test_every_type_of_model_gives_the_vectors_of_its_texts_one_by_one(tmp_path, kind):
    """Padding, the attention mask and the cut change nothing."""
    pooling = "last" if kind in CAUSAL else "mean"
    folder = tiny_transformer(tmp_path, kind)
    settings = EncoderSettings(pooling=pooling, normalize=True, max_length=24)
    found = vectors(open_question_encoder(folder, settings))
    assert_close(found, written_out(folder, TEXTS, pooling, 24), rtol=0, atol=1e-5)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_every_pooling_and_its_name_in_the_format(tmp_path, pooling):
    names = {"cls": "cls_token", "last": "lasttoken"}
    folder = tiny_transformer(tmp_path)
    write_modules(folder, names.get(pooling, f"{pooling}_tokens"), normalize=False)
    encoder = open_question_encoder(folder)
    assert (
        encoder.reading == {"pooling": pooling, "normalize": False, "prompt": ""} and encoder.max_length == 32
    )
    assert_close(
        vectors(encoder), written_out(folder, TEXTS, pooling, 32, normalize=False), rtol=0, atol=1e-5
    )
    (folder / "1_Pooling/config.json").write_text(
        json.dumps(
            {
                "embedding_dimension": 16,
                "pooling_mode": names.get(pooling, pooling).replace("cls_token", "cls"),
            }
        ).replace("mean_sqrt_len", "mean_sqrt_len_tokens")
    )
    assert open_question_encoder(folder).reading["pooling"] == pooling  # as version 6 writes it


def test_dense_layers_and_unit_length(tmp_path):
    folder = write_modules(tiny_transformer(tmp_path), dense=(16, 10))
    encoder = open_question_encoder(folder)
    weights = load_file(folder / "2_Dense/model.safetensors")
    pooled = written_out(folder, TEXTS, "mean", 32, normalize=False)
    expected = torch.tanh(pooled @ weights["linear.weight"].T + weights["linear.bias"])
    assert encoder.dim == 10
    assert_close(vectors(encoder), expected / expected.norm(dim=1, keepdim=True), rtol=0, atol=1e-5)


def test_prompts_stand_before_questions_and_before_title_and_text(tmp_path):
    prompts = {"query": "which river ", "passage": "Italy ", "other": "who "}
    folder = write_modules(tiny_transformer(tmp_path), prompts=prompts)
    question, passage = open_question_encoder(folder), open_passage_encoder(folder)
    asked = [f"which river {text}" for text in TEXTS]
    assert_close(vectors(question), written_out(folder, asked, "mean", 32), rtol=0, atol=1e-5)
    read = [f"Italy {title} {text}" for title, text in PASSAGES]
    assert_close(
        torch.from_numpy(passage.eval().encode(passages())),
        written_out(folder, read, "mean", 32),
        rtol=0,
        atol=1e-5,
    )

    settings = EncoderSettings(question_prompt_name="other", passage_prompt="")
    other = open_question_encoder(folder, settings)
    asked = [f"who {text}" for text in TEXTS]
    assert_close(vectors(other), written_out(folder, asked, "mean", 32), rtol=0, atol=1e-5)
    assert open_passage_encoder(folder, settings).prompt == ""


def test_a_passage_without_a_title_is_its_text(tmp_path):
    encoder = open_passage_encoder(write_modules(tiny_transformer(tmp_path))).eval()
    text = Passage("1", "", "The Seine is a river")
    assert_close(
        torch.from_numpy(encoder.encode([text])),
        written_out(tmp_path, [text.text], "mean", 32),
        rtol=0,
        atol=1e-5,
    )


def test_what_is_cut_is_counted_and_told_once(tmp_path, caplog):
    folder = write_modules(tiny_transformer(tmp_path))
    question, passage = open_question_encoder(folder), open_passage_encoder(folder)
    with caplog.at_level(logging.WARNING):
        assert question.tokenize([LONG])["input_ids"].shape == (1, 32)
        question.tokenize([LONG])
    assert caplog.text.count("longer than the question encoder's 32 tokens") == 1
    passage.tokenize([Passage("1", "a", LONG), Passage("2", "b", LONG), Passage("3", "c", "river")])
    assert passage.cut == 2


# -- saved, and tied to an index ------------------------------------------------------------------


def test_it_is_written_back_in_the_format_it_came_in(tmp_path):
    folder = write_modules(tiny_transformer(tmp_path / "a"), dense=(16, 10), prompts={"query": "who "})
    encoder = open_question_encoder(folder)
    with torch.no_grad():
        for weight in encoder.parameters():
            weight.add_(0.01)
    encoder.save_pretrained(tmp_path / "b")
    again = open_question_encoder(tmp_path / "b")
    assert isinstance(again, SentenceQuestionEncoder) and again.fingerprint() == encoder.fingerprint()
    assert again.prompt == "who " and again.reading == encoder.reading and again.max_length == 32
    assert_close(vectors(again), vectors(encoder))


def test_a_transformer_with_a_stated_pooling_says_it_itself_once_saved(tmp_path):
    folder = tiny_transformer(tmp_path / "a", "roberta")
    encoder = open_question_encoder(folder, EncoderSettings("cls", True, "who ", "the ", max_length=20))
    encoder.save_pretrained(tmp_path / "b")
    again = open_question_encoder(tmp_path / "b")
    assert again.fingerprint() == encoder.fingerprint()
    assert again.passage_fingerprint() == open_passage_encoder(tmp_path / "b").fingerprint()
    assert again.fingerprint() != again.passage_fingerprint()


@pytest.mark.parametrize(
    "other",
    [{"pooling": "max"}, {"normalize": False}, {"passage_prompt": "the "}, {"max_length": 31}],
    ids=lambda each: next(iter(each)),
)
def test_the_fingerprint_holds_all_that_decides_the_vectors(tmp_path, other):
    folder = write_modules(tiny_transformer(tmp_path))
    one, two = open_passage_encoder(folder), open_passage_encoder(folder, EncoderSettings(**other))
    assert open_passage_encoder(folder).fingerprint() == one.fingerprint() != two.fingerprint()


def test_dpr_folders_open_as_before(tmp_path):
    tokenizer = bert_tokenizer()
    encoder = QuestionEncoder(tiny_question_encoder(len(tokenizer)), tokenizer)
    encoder.save_pretrained(tmp_path)
    again = open_question_encoder(tmp_path)
    assert isinstance(again, QuestionEncoder) and again.fingerprint() == encoder.fingerprint()
    with pytest.raises(UserError, match="encoder.pooling=mean is given, but .* holds an encoder of DPR's"):
        open_question_encoder(tmp_path, EncoderSettings(pooling="mean"))
    with pytest.raises(UserError, match="holds no encoder for both sides"):
        open_embedder(tmp_path)


# -- mistakes -------------------------------------------------------------------------------------


def test_a_type_that_is_not_read_is_named_with_those_that_are(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "t5"}))
    with pytest.raises(
        UserError,
        match="holds a model of type t5, which is not supported as an encoder; available: bert, .*dpr, ",
    ):
        open_question_encoder(tmp_path)


def test_a_transformer_must_state_its_pooling(tmp_path):
    with pytest.raises(
        UserError, match="type bert that does not say .*: give encoder.pooling=cls, mean, max, last or"
    ):
        open_passage_encoder(tiny_transformer(tmp_path))
    with pytest.raises(UserError, match="encoder.pooling=median does not exist; available: cls, mean"):
        EncoderSettings(pooling="median")


def test_the_first_state_of_a_model_that_reads_from_the_left_is_no_vector(tmp_path):
    with pytest.raises(UserError, match="gpt2 reads from left to right.*encoder.pooling=last or mean"):
        open_passage_encoder(tiny_transformer(tmp_path, "gpt2"), EncoderSettings(pooling="cls"))


def test_prompts_that_do_not_exist(tmp_path):
    folder = write_modules(tiny_transformer(tmp_path), prompts={"query": "q: ", "sts": "s: "})
    with pytest.raises(
        UserError, match="question_prompt_name=ask is none of the prompts of .*: it has query, sts"
    ):
        open_question_encoder(folder, EncoderSettings(question_prompt_name="ask"))
    with pytest.raises(UserError, match="both given"):
        EncoderSettings(passage_prompt="a", passage_prompt_name="b")
    said = {"prompts": {"query": "q: "}, "default_prompt_name": "gone"}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(said))
    with pytest.raises(UserError, match="default_prompt_name gone is none of the prompts"):
        open_passage_encoder(folder)
    for each in ("modules.json", "config_sentence_transformers.json"):
        (folder / each).unlink()
    with pytest.raises(UserError, match="question_prompt_name=ask is given, but .* holds no prompts"):
        open_question_encoder(folder, EncoderSettings("cls", question_prompt_name="ask"))


@pytest.mark.parametrize(("kind", "positions"), [("bert", 64), ("xlm-roberta", 63)])
def test_more_tokens_than_positions(tmp_path, kind, positions):
    """RoBERTa's positions begin after the padding's number, which is 0 here: one is lost."""
    folder = write_modules(tiny_transformer(tmp_path, kind), max_length=65)
    with pytest.raises(UserError, match=f"max_seq_length is 65 .* has positions for {positions} tokens"):
        open_question_encoder(folder)
    at_most = open_question_encoder(folder, EncoderSettings(max_length=positions))
    assert vectors(at_most, ["the river " * 50]).isfinite().all()
    with pytest.raises(UserError, match="max_length=2 leaves no room"):
        EncoderSettings(max_length=2)


def test_modules_and_poolings_that_are_not_read(tmp_path):
    folder = write_modules(tiny_transformer(tmp_path))
    (folder / "1_Pooling/config.json").write_text(json.dumps({"pooling_mode": ["cls", "mean"]}))
    with pytest.raises(UserError, match="pools by cls and mean: expected one of cls, mean"):
        open_question_encoder(folder)
    (folder / "1_Pooling/config.json").write_text(
        json.dumps({"pooling_mode": "mean", "include_prompt": False})
    )
    with pytest.raises(UserError, match="include_prompt: false"):
        open_question_encoder(folder)
    (folder / "1_Pooling/config.json").unlink()
    with pytest.raises(UserError, match="config.json is missing"):
        open_question_encoder(folder)
    modules = json.loads((folder / "modules.json").read_text())
    modules[1]["type"] = "sentence_transformers.models.CNN"
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(
        UserError, match="is made of Transformer, CNN, Normalize: Transformer and Pooling are read"
    ):
        open_question_encoder(folder)
    (folder / "config.json").unlink()
    modules[1]["type"] = "sentence_transformers.models.Pooling"
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling/config.json").write_text(json.dumps({"pooling_mode": "mean"}))
    with pytest.raises(UserError, match="holds no transformer .*: restore its config.json"):
        open_question_encoder(folder)
    (folder / "modules.json").write_text("[{}]")
    with pytest.raises(UserError, match="names no modules"):
        open_question_encoder(folder)


def test_a_dense_that_is_not_its_configs(tmp_path):
    folder = write_modules(tiny_transformer(tmp_path), dense=(16, 10))
    file = folder / "2_Dense/config.json"
    said = json.loads(file.read_text())
    for change, match in [
        ({"out_features": 11}, "does not hold the Dense of its config.json"),
        ({"activation_function": "os.system"}, "Dense with os.system: Dense is read with Tanh"),
        ({"use_residual": True}, "with a residual connection"),
    ]:
        file.write_text(json.dumps(said | change))
        with pytest.raises(UserError, match=match):
            open_question_encoder(folder)


def test_a_cosine_without_unit_length_is_told(tmp_path, caplog):
    folder = write_modules(tiny_transformer(tmp_path), normalize=False, similarity_fn_name="cosine")
    with caplog.at_level(logging.WARNING):
        open_question_encoder(folder)
    assert "does not normalise its vectors" in caplog.text and "encoder.normalize=true" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        assert open_question_encoder(folder, EncoderSettings(normalize=True)).reading["normalize"]
    assert not caplog.text


# -- against sentence-transformers itself ---------------------------------------------------------


PACKAGE = [
    *[("bert", pooling) for pooling in POOLINGS],
    *[(kind, "cls" if kind == "modernbert" else "mean") for kind in BOTH_WAYS if kind != "bert"],
    *[(kind, "last") for kind in CAUSAL],
]


@pytest.mark.parametrize("whole", [False, True], ids=["pooled", "dense-normalized"])
@pytest.mark.parametrize(("kind", "pooling"), PACKAGE)
def test_it_equals_the_package_and_the_package_loads_what_is_saved(tmp_path, kind, pooling, whole):
    """Every type of model and every pooling, alone and with prompts, a Dense and unit length; trained weights too."""
    reference = pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
    prompts = {"query": "which river ", "document": "Italy "} if whole else None
    named = {"cls": "cls_token", "last": "lasttoken"}.get(pooling, f"{pooling}_tokens")
    folder = write_modules(
        tiny_transformer(tmp_path / "a", kind),
        named,
        whole,
        dense=(16, 10) if whole else None,
        prompts=prompts,
    )
    question, passage = open_question_encoder(folder).eval(), open_passage_encoder(folder).eval()
    for place in (folder, tmp_path / "b"):
        if place != folder:
            with torch.no_grad():
                for weight in question.parameters():
                    weight.add_(torch.randn_like(weight) * 0.05)
            question.save_pretrained(place)
            passage = open_passage_encoder(place).eval()
        theirs = reference.SentenceTransformer(str(place), device="cpu")
        asked = theirs.encode_query(TEXTS)
        read = theirs.encode_document([f"{title} {text}" for title, text in PASSAGES])
        tolerance = 1e-5 * max(1.0, float(np.abs(asked).max()))
        np.testing.assert_allclose(vectors(question), asked, rtol=0, atol=tolerance)
        np.testing.assert_allclose(passage.encode(passages()), read, rtol=0, atol=tolerance)


def test_the_real_minilm():
    """Mean of the states, unit length, 256 tokens; each question is nearest to the passage that answers it."""
    folder = Path(os.environ.get("RAG_MINILM", "data/all-MiniLM-L6-v2"))
    if not (folder / "model.safetensors").is_file():
        pytest.skip(f"all-MiniLM-L6-v2 is not in {folder}: give its folder as RAG_MINILM")
    assert hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest() == MINILM_SHA256
    question, passage = open_question_encoder(folder), open_passage_encoder(folder).eval()
    assert question.max_length == 256 and question.dim == 384
    texts = [*QUESTIONS, "the river " * 200]
    found = vectors(question, texts)
    assert_close(found, written_out(folder, texts, "mean", 256), rtol=0, atol=1e-5)
    scores = found[:3].numpy() @ passage.encode(passages()).T
    assert scores.argmax(axis=1).tolist() == [0, 2, 4]
    try:
        import sentence_transformers
    except ImportError:
        return
    theirs = sentence_transformers.SentenceTransformer(str(folder), device="cpu")
    np.testing.assert_allclose(found, theirs.encode(texts), rtol=0, atol=1e-5)


def test_both_sides_are_of_their_own_class(tmp_path):
    folder = write_modules(tiny_transformer(tmp_path))
    assert isinstance(open_passage_encoder(folder), SentencePassageEncoder)
    assert not isinstance(open_passage_encoder(folder), PassageEncoder)

"""Products in 8 bits: close to those of float32, wherever they are asked for, and refused where they make no sense."""

from dataclasses import replace
from unittest.mock import ANY

import numpy as np
import pytest
import torch
from commands import run as command
from conftest import PASSAGES, bert_tokenizer, tiny_bart, tiny_passage_encoder, word_tokenizer
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import DictConfig
from tiny_runs import write_run
from torch import nn

from rag.ask.__main__ import CHANGEABLE, OWN
from rag.ask.session import open_session
from rag.checkpoint_config import from_checkpoint
from rag.compose import compose_config
from rag.decoding.generation import generate
from rag.decoding.settings import Decoding
from rag.encoders.dpr import PassageEncoder
from rag.encoders.opening import open_passage_encoder
from rag.encoders.reduced import in_precision
from rag.errors import UserError
from rag.files import read_json
from rag.generators.seq2seq import Generator
from rag.index.folder import Index
from rag.index.passage import Passage
from rag.int8 import Int8Linear, to_int8
from rag.model import RagToken


@given(
    st.integers(16, 70),
    st.integers(16, 70),
    st.integers(1, 9),
    st.booleans(),
    st.sampled_from([1e-3, 1.0, 50.0]),
    st.integers(0, 99),
)
def test_a_product_is_off_by_the_rounding_of_its_factors(inputs, outputs, rows, bias, size, seed):
    """|Wx − Ŵx̂| ≤ |W| |x − x̂| + |W − Ŵ| |x̂|."""
    torch.manual_seed(seed)
    linear = nn.Linear(inputs, outputs, bias)
    x = torch.randn(rows, inputs) * size
    x[0] = 0.0
    with torch.no_grad():
        close, exact = Int8Linear(linear)(x), linear(x)
        of_x = x.abs().amax(1, keepdim=True) / 127 / 2
        of_weight = linear.weight.abs().amax(1) / 127 / 2
        bound = linear.weight.abs().sum(1) * of_x + of_weight * (x.abs().sum(1, keepdim=True) + inputs * of_x)
    assert ((close - exact).abs() <= 1.001 * bound + 1e-5 * exact.abs() + 1e-7).all()
    assert close.dtype == torch.float32 and close.shape == exact.shape
    of_rows = torch.cat([Int8Linear(linear)(row) for row in x])  # of one row alone, whatever the others are
    assert torch.allclose(of_rows.view_as(close), close, rtol=1e-5, atol=1e-7)


def test_what_is_replaced_and_what_is_not():
    class Own(nn.Linear):
        """Somebody's, as bitsandbytes has."""

    shared = nn.Linear(16, 20)
    model = nn.ModuleDict(
        {
            "a": shared,
            "b": nn.Sequential(shared, nn.LayerNorm(20)),
            "own": Own(16, 16),
            "e": nn.Embedding(3, 16),
            "small": nn.Linear(16, 1),
        }
    )
    was = shared.weight.detach().clone()
    assert to_int8(model) == 1
    assert model["a"] is model["b"][0] and isinstance(model["a"], Int8Linear)
    assert (
        type(model["own"]) is Own and type(model["small"]) is nn.Linear and type(model["e"]) is nn.Embedding
    )
    assert (model["a"].weight - was).abs().max() <= was.abs().max() / 127
    with pytest.raises(UserError, match="found no linear layer to take in 8 bits"):
        to_int8(nn.Sequential(nn.Embedding(3, 4)))


def test_rows_of_zeros_and_half_precision():
    linear = nn.Linear(16, 17).bfloat16()
    nn.init.zeros_(linear.weight)
    x = torch.randn(2, 16, dtype=torch.bfloat16)
    with torch.no_grad():
        assert torch.equal(Int8Linear(linear)(x), linear(x)) and Int8Linear(linear)(x).dtype == torch.bfloat16


@pytest.fixture
def folder(tmp_path, index):
    return write_run(tmp_path / "run", "rag_token", index)


@pytest.fixture
def encoder_folder(tmp_path):
    tokenizer = bert_tokenizer([f"{title} {text}" for title, text in PASSAGES])
    PassageEncoder(tiny_passage_encoder(len(tokenizer)), tokenizer).save_pretrained(tmp_path / "encoder")
    return tmp_path / "encoder"


def test_a_model_in_8_bits_is_close_to_itself(retriever):
    """log p(y|x) to a few hundredths, through the output layer that calls what makes the scores."""
    tokenizer = word_tokenizer()
    model = RagToken(retriever, Generator(tiny_bart(len(tokenizer)), tokenizer), n_docs=3).eval()
    batch = model.prepare(["what is the capital of France?"], ["Paris"])
    with torch.no_grad():
        exact = model(batch)
        assert to_int8(model.generator) > 10
        close = model(batch)
    assert torch.equal(close.doc_logprobs, exact.doc_logprobs)  # retrieval stays what it was
    difference = (close.token_logprobs - exact.token_logprobs).abs().max()
    assert 0 < difference < 0.1
    ((answer, *_),) = generate(model, model.read(batch), Decoding(max_new_tokens=4, num_beams=2))
    assert np.isfinite(answer.logprob)


def test_evaluation_in_8_bits_is_another_result_and_says_so(folder, tmp_path, capsys):
    (tmp_path / "asked.jsonl").write_text(
        '{"question": "what is the capital of France?", "answers": ["Paris"]}\n'
    )
    asked = [f"checkpoint={folder}", "task=qa", "task.passages=null", "k_sweep=[]", "bm25=false"]
    asked += [f"task.{split}={tmp_path / 'asked.jsonl'}" for split in ("train", "dev", "test")]
    metrics = {}
    for int8 in ("false", "true"):
        assert command("evaluate", *asked, f"int8={int8}", f"results={folder}/{int8}") == 0
        result = read_json(folder / int8 / "result.json")
        metrics[int8] = {each["metric"]: each["value"] for each in result["metrics"]}
    assert metrics["true"]["answer_recall"] == metrics["false"]["answer_recall"]
    assert command("evaluate", *asked, "int8=true", f"results={folder}/false") == 2
    assert "overwrite" in capsys.readouterr().err


def asked(overrides: list[str]) -> DictConfig:
    return from_checkpoint(compose_config("ask", overrides), overrides, "rag.ask", CHANGEABLE, OWN)


def test_asking_in_8_bits(folder):
    session, choice, _ = open_session(asked([f"checkpoint={folder}", "int8=true"]))
    layers = [each for each in session.model.generator.modules() if isinstance(each, Int8Linear)]
    assert len(layers) > 10
    (reply,) = session.answer(["what is the capital of France?"], choice)
    assert np.isfinite(reply.logprob)


def test_embedding_in_8_bits_is_close_and_stays_so(tmp_path, encoder_folder, capsys):
    tsv = tmp_path / "psgs.tsv"
    rows = [f"{number}\t{text}\t{title}\n" for number, (title, text) in enumerate(PASSAGES, 1)]
    tsv.write_text("id\ttext\ttitle\n" + "".join(rows))
    place = [f"index.path={tmp_path / 'index'}", f"passage_encoder={encoder_folder}", "experiment=null"]
    assert command("build_index", f"corpus.path={tsv}", *place, "int8=true") == 0
    for more in ([], [f"add={tsv}"], ["sync=true"]):
        assert command("build_index", f"corpus.path={tsv}", *place, "bfloat16=true", *more) == 2
        assert (
            "holds vectors made with int8=true, which goes on: leave bfloat16=true out"
            in capsys.readouterr().err
        )
    assert command("build_index", f"corpus.path={tsv}", *place, "int8=true") == 0
    index = Index.open(tmp_path / "index")
    assert index.manifest.encoder.precision == "int8"
    vectors = index.vectors(np.arange(len(PASSAGES)))
    (tmp_path / "more.tsv").write_text("id\ttext\ttitle\n900\tThe Seine runs through Paris .\tSeine\n")
    assert command("build_index", *place, f"add={tmp_path / 'more.tsv'}") == 0
    grown = Index.open(tmp_path / "index")
    encoder = open_passage_encoder(str(encoder_folder)).eval()
    assert grown.manifest.encoder == replace(encoder.describe(), name=ANY, precision="int8")
    whole = encoder.encode([Passage(str(n), title, text) for n, (title, text) in enumerate(PASSAGES, 1)])
    cosines = (vectors * whole).sum(1) / np.linalg.norm(vectors, axis=1) / np.linalg.norm(whole, axis=1)
    assert 0.98 < cosines.min() and not np.allclose(vectors, whole, atol=1e-6)
    added = Passage("900", "Seine", "The Seine runs through Paris .")
    of_float = encoder.encode([added])
    of_int8 = in_precision(encoder, "int8").encode([added])
    assert np.allclose(grown.vectors(np.array([len(PASSAGES)])), of_int8, atol=1e-6)
    assert not np.allclose(of_float, of_int8, atol=1e-6)


def test_where_it_makes_no_sense_it_is_refused(folder, tmp_path, capsys):
    tsv = tmp_path / "psgs.tsv"
    tsv.write_text("id\ttext\ttitle\n1\ta\tb\n")
    assert (
        command(
            "build_index", f"corpus.path={tsv}", f"index.path={tmp_path / 'x'}", "int8=true", "bfloat16=true"
        )
        == 2
    )
    assert "bfloat16=true and int8=true exclude each other: take one" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
    found = ["reader=none", "retriever=bm25", f"corpus.path={tsv}", "int8=true"]
    assert command("evaluate", *found) == 2
    assert (
        "int8=true is for a model that answers, and this one finds passages: leave it out"
        in capsys.readouterr().err
    )

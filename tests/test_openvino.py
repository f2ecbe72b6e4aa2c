"""Passages embedded by OpenVINO: torch's vectors, to the digits of bfloat16, whatever the encoder's form."""

import logging
import sys
from dataclasses import replace
from importlib.util import find_spec
from unittest.mock import ANY

import numpy as np
import pytest
from commands import run as command
from conftest import PASSAGES, bert_tokenizer, tiny_passage_encoder
from sentence_folders import tiny_transformer, write_modules

from rag.encoders.dpr import PassageEncoder
from rag.encoders.opening import open_passage_encoder
from rag.encoders.openvino import InOpenVino
from rag.encoders.reduced import reduced
from rag.errors import UserError
from rag.index.folder import Index
from rag.index.passage import Passage

# importing it here would import its telemetry too
installed = pytest.mark.skipif(find_spec("openvino") is None, reason="OpenVINO is not installed")
TEXTS = [Passage(str(n), title, text) for n, (title, text) in enumerate(PASSAGES, 1)]


def dpr(folder):
    tokenizer = bert_tokenizer([f"{title} {text}" for title, text in PASSAGES])
    PassageEncoder(tiny_passage_encoder(len(tokenizer)), tokenizer).save_pretrained(folder)


def sentence(folder):
    write_modules(tiny_transformer(folder))


def same(ours: np.ndarray, theirs: np.ndarray) -> bool:
    cosines = (ours * theirs).sum(1) / np.linalg.norm(ours, axis=1) / np.linalg.norm(theirs, axis=1)
    return ours.dtype == np.float32 and ours.shape == theirs.shape and float(cosines.min()) > 0.999


@installed
@pytest.mark.parametrize("write", [dpr, sentence])
def test_vectors_are_torchs(tmp_path, write):
    write(tmp_path / "encoder")
    encoder = open_passage_encoder(str(tmp_path / "encoder")).eval()
    ours = InOpenVino(encoder)
    assert same(ours.encode(TEXTS), encoder.encode(TEXTS))
    assert same(ours.encode(TEXTS[3:4]), encoder.encode(TEXTS[3:4]))  # another batch, another length
    assert ours.describe() == replace(encoder.describe(), precision="openvino")
    assert "openvino_telemetry" not in sys.modules  # which reports imports and conversions to its makers


@installed
def test_an_index_is_built_and_grows_by_it(tmp_path):
    dpr(tmp_path / "encoder")
    for name, some in {"a": TEXTS[:-1], "b": TEXTS[-1:]}.items():
        rows = "".join(f"{each.id}\t{each.text}\t{each.title}\n" for each in some)
        (tmp_path / f"{name}.tsv").write_text("id\ttext\ttitle\n" + rows)
    place = [f"index.path={tmp_path / 'index'}", f"passage_encoder={tmp_path / 'encoder'}", "experiment=null"]
    assert command("build_index", f"corpus.path={tmp_path / 'a.tsv'}", *place, "openvino=true") == 0
    assert command("build_index", *place, f"add={tmp_path / 'b.tsv'}") == 0
    index = Index.open(tmp_path / "index")
    encoder = open_passage_encoder(str(tmp_path / "encoder")).eval()
    assert index.manifest.encoder == replace(encoder.describe(), name=ANY, precision="openvino")
    assert same(index.vectors(np.arange(len(TEXTS))), encoder.encode(TEXTS))


def test_what_it_cannot_do_is_told(tmp_path, monkeypatch):
    dpr(tmp_path / "encoder")
    encoder = open_passage_encoder(str(tmp_path / "encoder")).eval()
    with pytest.raises(UserError, match="bfloat16=true and openvino=true exclude each other: take one"):
        reduced(encoder, bfloat16=True, int8=False, openvino=True)
    monkeypatch.setitem(__import__("sys").modules, "openvino", None)
    with pytest.raises(UserError, match=r'not installed: python -m pip install -e "\.\[openvino\]"'):
        InOpenVino(encoder)
    assert reduced(encoder, bfloat16=False) is encoder and reduced(None, int8=True) is None


@installed
def test_a_model_that_cannot_be_compiled_is_told(tmp_path):
    dpr(tmp_path / "encoder")
    encoder = open_passage_encoder(str(tmp_path / "encoder")).eval()

    def wild(**tokens):
        raise RuntimeError("not like this")

    encoder.forward, level = wild, logging.getLogger().level
    with pytest.raises(UserError, match="OpenVINO cannot compile .*: leave openvino=true out"):
        InOpenVino(encoder)
    assert logging.getLogger().level == level  # warnings are still heard

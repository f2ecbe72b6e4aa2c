"""The project's own reader: a small folder, whose word embeddings and tokenizer come from elsewhere."""

import shutil
from pathlib import Path

import pytest
import torch
from conftest import bert_tokenizer
from safetensors.torch import load_file, save_file
from test_warm_start import PASSAGE, bert, shaken
from torch.testing import assert_close

import rag.generators.pretrained as pretrained
from rag.errors import UserError
from rag.files import hash_file
from rag.generators.context import Ragged, token_rows
from rag.generators.pretrained import pretrained_reader, save_reader
from rag.generators.reader import new_reader
from rag.generators.seq2seq import Generator
from rag.minilm import WEIGHTS


@pytest.fixture
def folder(tmp_path: Path, monkeypatch) -> Path:
    """words/, in MiniLM's place, and reader/, made of it."""
    tokenizer = bert_tokenizer()
    bert(len(tokenizer)).save_pretrained(tmp_path / "words")
    tokenizer.save_pretrained(tmp_path / "words")
    monkeypatch.setattr(pretrained, "MINILM", hash_file(tmp_path / "words" / WEIGHTS))
    reader = new_reader(tmp_path / "words", max_context_length=40, max_target_length=6)
    shaken(reader.model)
    save_reader(reader, tmp_path / "reader", tmp_path / "words")
    reader.save_pretrained(tmp_path / "whole")
    return tmp_path


def logprobs(generator: Generator) -> torch.Tensor:
    questions = generator.tokenize_questions(["what is the capital of France?"])
    passages = Ragged.of(token_rows(generator.tokenizer, [PASSAGE]))
    ids, mask = generator.eval().assemble(questions, passages)
    with torch.no_grad():
        return generator.token_logprobs(
            generator.encode(ids, mask), mask, generator.tokenize_targets(["Paris"])[0]
        )[0]


def test_it_reads_as_the_whole_one_does(folder):
    """To half precision; the folder holds neither word embeddings nor a tokenizer."""
    reader = pretrained_reader(folder / "reader", folder / "words", max_target_length=5)
    whole = Generator.from_pretrained(folder / "whole")
    assert_close(logprobs(reader), logprobs(whole), rtol=0, atol=5e-3)
    assert reader.settings == whole.settings | {"max_target_length": 5}
    assert next(reader.parameters()).dtype == torch.float32
    saved = load_file(folder / "reader" / WEIGHTS)
    assert {weight.dtype for weight in saved.values()} == {torch.float16}
    assert not any("word_embeddings" in name or name.startswith("lm_head") for name in saved)
    assert sorted(file.name for file in (folder / "reader").iterdir()) == [
        "config.json", "model.safetensors", "rag_generator.json",
    ]  # fmt: skip


def test_what_is_wrong_is_told(folder):
    with pytest.raises(UserError, match=r"is not at .*nowhere: restore that folder, or give checkpoint=RUN"):
        pretrained_reader(folder / "nowhere", folder / "words")
    file = folder / "reader" / WEIGHTS
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="model.safetensors cannot be read .*: restore it"):
        pretrained_reader(folder / "reader", folder / "words")
    file.write_bytes(whole)
    weights = load_file(file)
    name = next(iter(weights))
    save_file({k: v for k, v in weights.items() if k != name}, file)
    with pytest.raises(UserError, match=f"lacks weights of the reader, or holds others .{name}"):
        pretrained_reader(folder / "reader", folder / "words")
    save_file(weights | {name: torch.full_like(weights[name], torch.nan)}, file)
    with pytest.raises(UserError, match=f"not finite .{name}"):
        pretrained_reader(folder / "reader", folder / "words")
    save_file(weights | {name: torch.zeros(3, 3, dtype=torch.float16)}, file)
    with pytest.raises(UserError, match="cannot be read .*: restore it"):
        pretrained_reader(folder / "reader", folder / "words")


def test_other_word_embeddings_are_not_left_out(folder):
    reader = Generator.from_pretrained(folder / "whole")
    with torch.no_grad():
        reader.model.get_input_embeddings().weight[0, 0] += 1
    with pytest.raises(UserError, match="word embeddings are not those of all-MiniLM-L6-v2"):
        save_reader(reader, folder / "again", folder / "words")
    shutil.copy(folder / "whole" / WEIGHTS, folder / "words" / WEIGHTS)
    with pytest.raises(UserError, match="has sha256 .* instead of"):
        pretrained_reader(folder / "reader", folder / "words")

"""Folders of models whose files were cut short, emptied or exchanged: one sentence, whichever file it is."""

import shutil

import pytest
from conftest import tiny_bart, tiny_passage_encoder, word_tokenizer

from rag.encoders import open_passage_encoder
from rag.encoders.dpr import PassageEncoder
from rag.errors import UserError
from rag.generators.seq2seq import Generator

CONTENTS = {"empty": b"", "a list": b"[]", "null": b"null", "rubbish": b"\0\xff" * 50, "half": None}
NEEDED = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")


@pytest.mark.parametrize("what", ["encoder", "generator"])
def test_a_damaged_file_of_a_model_is_one_sentence(tmp_path, what):
    tokenizer = word_tokenizer()
    if what == "encoder":
        PassageEncoder(tiny_passage_encoder(len(tokenizer)), tokenizer).save_pretrained(tmp_path / "whole")
        open_model = open_passage_encoder
    else:
        Generator(tiny_bart(len(tokenizer)), tokenizer).save_pretrained(tmp_path / "whole")
        open_model = Generator.from_pretrained
    open_model(tmp_path / "whole")
    for name in NEEDED:
        for kind, content in CONTENTS.items():
            folder = tmp_path / "damaged"
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(tmp_path / "whole", folder)
            file = folder / name
            whole = file.read_bytes()
            file.write_bytes(whole[: len(whole) // 2] if content is None else content)
            with pytest.raises(UserError) as caught:
                open_model(folder)
            assert "\n" not in str(caught.value), (name, kind)

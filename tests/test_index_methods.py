"""`Index.build`, `update` and `verify` from Python: what build_index.py does, with the same bytes."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from clustered import ENCODER, bytes_of, corpus, encode, write_parquet, write_tsv
from conftest import PASSAGES as PAIRS

import build_index as script
from rag import Index
from rag.encoders import open_passage_encoder
from rag.errors import UserError
from rag.files import hash_file
from rag.index.faiss_types import IndexType
from rag.index.passage import Passage
from rag.index.vectors import EncoderInfo


@dataclass
class Counting:
    """A passage encoder of one's own: vectors that depend on the passage alone, and which passages were encoded."""

    info: EncoderInfo = ENCODER
    encoded: list[str] = field(default_factory=list)

    def encode(self, passages):
        self.encoded += [passage.id for passage in passages]
        return encode(list(passages))

    def describe(self) -> EncoderInfo:
        return self.info


@pytest.fixture
def tsv(tmp_path) -> Path:
    return write_tsv(tmp_path / "corpus.tsv", corpus(60))


def quietly(folder: Path, tsv: Path, encoder, index_type: IndexType | str = "Flat", **settings) -> Index:
    return Index.build(folder, tsv, encoder, index_type, shard_size=20, show_progress=False, **settings)


def test_built_found_again_and_updated(tsv, tmp_path):
    encoder = Counting()
    index = quietly(tmp_path / "index", tsv, encoder)
    assert list(index.passages) == corpus(60) and index.manifest.encoder == ENCODER
    np.testing.assert_array_equal(index.vectors(np.arange(60)), encode(corpus(60)))
    before = bytes_of(index.folder)
    encoder.encoded.clear()
    quietly(tmp_path / "index", tsv, encoder)
    assert encoder.encoded == [] and bytes_of(index.folder) == before

    new = Passage("new", "title 1", "news")
    more = write_tsv(tmp_path / "more.tsv", [new])
    edition = index.update(add=more, remove=["3"], passage_encoder=encoder, show_progress=False)
    assert encoder.encoded == ["new"]
    assert list(edition.passages) == [*(p for p in corpus(60) if p.id != "3"), new]
    assert len(index) == 60  # who opened the old edition goes on with it
    edition.verify()
    (edition.folder / "vectors" / "00001.npy").write_bytes(
        bytes((edition.folder / "vectors" / "00001.npy").stat().st_size)
    )
    with pytest.raises(UserError, match="00001.npy was altered"):
        edition.verify()


def test_another_index_in_the_folder_is_replaced_only_where_that_is_asked_for(tsv, tmp_path):
    folder, encoder = tmp_path / "index", Counting()
    quietly(folder, tsv, encoder)
    other = write_tsv(tmp_path / "other.tsv", corpus(50))
    stranger = Counting(EncoderInfo("other", "w2", "t2"))
    for arguments, sentence in [
        ((other, encoder), "holds another corpus"),
        ((tsv, stranger), "holds vectors of another encoder"),
        ((tsv, encoder, "SQ8"), "holds an index of type Flat instead of SQ8"),
        ((tsv, encoder, IndexType("Flat", refine=3)), "holds an index with refine=1 instead of 3"),
    ]:
        with pytest.raises(UserError, match=f"{sentence}.*overwrite=true"):
            quietly(folder, *arguments)
    encoder.encoded.clear()
    assert quietly(folder, tsv, encoder, "SQ8", overwrite=True).manifest.factory == "SQ8"
    assert encoder.encoded == []  # the vectors were there
    assert len(quietly(folder, other, encoder, "SQ8", overwrite="changed")) == 50
    encoder.encoded.clear()
    quietly(folder, other, encoder, "SQ8", overwrite="changed")
    assert encoder.encoded == []  # nothing has changed
    quietly(folder, other, encoder, "SQ8", overwrite=True)
    assert len(encoder.encoded) == 50


def test_an_interrupted_build_resumes(tsv, tmp_path):
    class Stopping(Counting):
        def encode(self, passages):
            if len(self.encoded) >= 20:
                raise KeyboardInterrupt
            return super().encode(passages)

    with pytest.raises(KeyboardInterrupt):
        quietly(tmp_path / "index", tsv, Stopping(), batch_size=10)
    rest = Counting()
    index = quietly(tmp_path / "index", tsv, rest, batch_size=10)
    assert sorted(rest.encoded, key=int) == [str(n) for n in range(21, 61)]
    np.testing.assert_array_equal(index.vectors(np.arange(60)), encode(corpus(60)))


def test_vectors_are_taken_over_without_the_encoder(tmp_path):
    files = write_parquet(tmp_path / "ready", corpus(60))
    index = quietly(tmp_path / "index", files, "facebook/dpr-ctx_encoder", vectors=files)
    assert index.manifest.encoder.name == "facebook/dpr-ctx_encoder"
    np.testing.assert_array_equal(index.vectors(np.arange(60)), encode(corpus(60)))


def test_a_name_is_no_encoder(tsv, tmp_path):
    for encoder, shown in [("outputs/dpr", "'outputs/dpr'"), (None, "None")]:
        with pytest.raises(UserError, match=f"passage_encoder={shown} cannot embed .*open_passage_encoder"):
            quietly(tmp_path / "index", tsv, encoder)
    assert not (tmp_path / "index").exists()


def test_the_script_writes_the_same_index(passage_encoder, tmp_path, capsys):
    rows = [Passage(str(number), *pair) for number, pair in enumerate(PAIRS, start=1)]
    tsv = write_tsv(tmp_path / "p.tsv", rows)
    passage_encoder.save_pretrained(tmp_path / "encoder")
    settings = [f"corpus.path={tsv}", f"passage_encoder={tmp_path / 'encoder'}", "name=x"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "sys.argv",
            ["build_index.py", "experiment=null", *settings, f"index.path={tmp_path / 'a'}"],
        )
        script.main()
    opened = open_passage_encoder(tmp_path / "encoder").eval()
    index = Index.build(tmp_path / "b", tsv, opened)
    assert f"index (Flat) of {tsv} by {tmp_path / 'encoder'} in {tmp_path / 'b'}" in capsys.readouterr().out
    assert index.manifest.encoder == Index.open(tmp_path / "a").manifest.encoder
    assert index.manifest.encoder.name == str(tmp_path / "encoder")
    for name in index.manifest.files:
        assert hash_file(tmp_path / "a" / name) == hash_file(tmp_path / "b" / name), name

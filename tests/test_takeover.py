"""Embedding on many machines: processes that never meet share the shards, and make those of the ones that are lost."""

import runpy
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from clustered import ENCODER, bytes_of, corpus, encode, make, write_tsv
from conftest import bert_tokenizer, tiny_passage_encoder

from rag.encoders.dpr import PassageEncoder
from rag.errors import UserError
from rag.index.build import build
from rag.index.embed import embed
from rag.index.folder import Index
from rag.index.from_corpus import embed_part
from rag.index.passages import PassageStore
from rag.runs import PROJECT

HERE = [str(Path(__file__).parent), str(Path(__file__).parents[1])]


def vectors_of(folder: Path) -> dict[str, bytes]:
    return {
        name: content
        for name, content in bytes_of(folder / "vectors").items()
        if not name.startswith(".claim")
    }


@pytest.mark.slow
def test_four_processes_of_which_two_are_killed(tmp_path):
    """kill -9 of two while each is in the middle of a shard: the other two make theirs, to the bytes of one process."""
    whole, shared = make(tmp_path / "whole", 200, shard_size=10).folder, tmp_path / "shared"
    write_tsv(tmp_path / "c.tsv", corpus(200))
    script = f"""
import sys, time; sys.path[:0] = {HERE!r}
from clustered import ENCODER, encode
from rag.index.from_corpus import embed_part
number = int(sys.argv[1])
class Encoder:
    made = 0
    def encode(self, batch):
        Encoder.made += 1
        if Encoder.made == 4 and number in (1, 2):  # in its second shard
            print("in the middle", flush=True)
            time.sleep(600)
        time.sleep(0.05)
        return encode(list(batch))
    def describe(self):
        return ENCODER
print(embed_part({str(shared)!r}, {str(tmp_path / "c.tsv")!r}, Encoder(), number, 4, shard_size=10, batch_size=4,
    show_progress=False))
"""
    pipes = {"stdout": subprocess.PIPE, "text": True}
    four = [subprocess.Popen([sys.executable, "-c", script, str(n)], **pipes) for n in range(4)]
    for lost in (four[1], four[2]):
        while (line := lost.stdout.readline()) != "in the middle\n":
            assert line, "it ended by itself"
        lost.send_signal(signal.SIGKILL)
        lost.communicate()
    made = [int(four[n].communicate(timeout=120)[0].splitlines()[-1]) for n in (0, 3)]
    assert [four[n].returncode for n in (0, 3)] == [0, 0]
    assert sum(made) >= 100 and min(made) > 0  # their own fifty each, and what the others left of theirs
    build(shared, show_progress=False)
    assert vectors_of(shared) == vectors_of(whole)
    assert not list((shared / "vectors").glob(".claim-*"))
    np.testing.assert_array_equal(Index.open(shared).vectors(np.arange(200)), encode(corpus(200)))


def test_a_process_that_never_comes_is_not_waited_for(tmp_path):
    store = PassageStore.write(corpus(70), tmp_path / "i/passages")
    assert embed(store, encode, tmp_path / "i", ENCODER, 10, 7, 1, 3, show_progress=False) == 70
    assert embed(store, encode, tmp_path / "i", ENCODER, 10, 7, 0, 3, show_progress=False) == 0


def test_its_own_shards_come_first(tmp_path):
    store = PassageStore.write(corpus(60), tmp_path / "i/passages")
    seen = []

    def encoded(batch):
        seen.append(int(batch[0].id) // 10)
        return encode(batch)

    embed(store, encoded, tmp_path / "i", ENCODER, 10, 10, 1, 3, show_progress=False)
    assert [number % 3 for number in seen] == [1, 1, 2, 2, 0, 0] or seen[:2] == [1, 4]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("encoder") / "passage"
    tokenizer = bert_tokenizer([f"{p.title} {p.text}" for p in corpus(30)])
    PassageEncoder(tiny_passage_encoder(len(tokenizer)), tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture
def command(monkeypatch, encoder, tmp_path):
    def run(*arguments: str) -> int:
        given = [
            "experiment=null",
            f"index.path={tmp_path / 'index'}",
            f"passage_encoder={encoder}",
            "shard_size=7",
        ]
        monkeypatch.setattr(sys, "argv", ["build_index.py", *given, *arguments])
        try:
            runpy.run_path(str(PROJECT / "build_index.py"), run_name="__main__")
        except SystemExit as end:
            return int(end.code or 0)
        return 0

    return run


def test_parts_as_they_are_typed(command, tmp_path, capsys, monkeypatch):
    file = write_tsv(tmp_path / "c.tsv", corpus(30))
    assert command(f"corpus.path={file}", "part=1/2") == 0
    assert "all vectors are in" in (said := capsys.readouterr().out) and "30 of them made here" in said
    monkeypatch.setenv(
        "WORLD_SIZE", "2"
    )  # of torchrun on one of the machines, whose processes need not meet either
    monkeypatch.setenv("RANK", "1")
    assert command(f"corpus.path={file}", "part=0/2") == 0
    assert "0 of them made here" in capsys.readouterr().out
    monkeypatch.delenv("WORLD_SIZE")
    monkeypatch.delenv("RANK")
    assert command(f"corpus.path={file}") == 0
    assert len(Index.open(tmp_path / "index")) == 30
    assert command(f"corpus.path={file}", "part=0/2") == 0
    assert "holds a finished index: nothing is left to embed" in capsys.readouterr().out
    for part in ("2/2", "x", "1"):
        assert command(f"corpus.path={file}", f"part={part}", f"index.path={tmp_path / 'other'}") == 2
        assert f"error: part={part}" in capsys.readouterr().err


def test_a_part_that_is_none(tmp_path):
    with pytest.raises(UserError, match="part=4/4 does not exist: give 0/4 to 3/4"):
        embed_part(tmp_path / "i", write_tsv(tmp_path / "c.tsv", corpus(3)), None, 4, 4)
    assert not (tmp_path / "i").exists()

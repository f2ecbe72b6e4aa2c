"""Editions of an index that a kill left beside each other: which one gets the name back, and what is removed."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from clustered import bytes_of, make

from rag.index.editions import next_edition, put_back, tidy
from rag.runs import PROJECT


@pytest.fixture(scope="module")
def editions(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three indexes, of which "newest" was built last."""
    root = tmp_path_factory.mktemp("editions")
    made = {
        name: make(root / name, 20 + place).folder for place, name in enumerate(("old", "newer", "newest"))
    }
    for place, folder in enumerate(made.values()):
        os.utime(folder / "manifest.json", (1_000_000 + place, 1_000_000 + place))
    return made


def leave(edition: Path, as_name: Path) -> None:
    shutil.copytree(edition, as_name)


def test_the_newest_complete_edition_gets_the_name_back_and_not_the_one_whose_name_sorts_first(
    tmp_path, editions
):
    index = tmp_path / "my [index]"  # no pattern
    leave(editions["newer"], tmp_path / f".{index.name}.5.old")
    leave(editions["old"], tmp_path / f".{index.name}.9.old")
    leave(editions["newest"], tmp_path / f".{index.name}.7.old")
    (tmp_path / f".{index.name}.7.old" / "index.faiss").unlink()  # it was being removed
    put_back(index)
    assert bytes_of(index) == bytes_of(editions["newer"])
    assert os.listdir(tmp_path) == [index.name]


def test_the_next_edition_takes_its_place_if_it_was_complete(tmp_path, editions):
    index = tmp_path / "index"
    leave(editions["old"], tmp_path / ".index.9.old")
    leave(editions["newest"], next_edition(index))
    put_back(index)
    assert bytes_of(index) == bytes_of(editions["newest"]) and os.listdir(tmp_path) == ["index"]


def test_what_is_not_whole_costs_nothing_that_is(tmp_path, editions):
    """An index that was damaged keeps the edition before it; a next edition that is being built stays."""
    index = tmp_path / "index"
    leave(editions["newer"], index)
    leave(editions["old"], tmp_path / ".index.9.old")
    leave(editions["newest"], next_edition(index))
    (next_edition(index) / "manifest.json").unlink()
    (index / "index.faiss").write_bytes(b"short")
    put_back(index)
    assert sorted(os.listdir(tmp_path)) == [".index.9.old", ".index.new", "index"]
    shutil.rmtree(index)
    put_back(index)
    assert bytes_of(index) == bytes_of(editions["old"])
    assert sorted(os.listdir(tmp_path)) == [".index.new", "index"]
    put_back(tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()


def test_an_exchange_that_is_under_way_is_waited_for(tmp_path, editions):
    """Another process stands between the two renames."""
    index = tmp_path / "index"
    leave(editions["old"], index)
    leave(editions["newest"], next_edition(index))
    code = f"""
import shutil, sys, time
from pathlib import Path
from rag.index.embed import lock_folder
folder = Path({str(index)!r})
old = folder.with_name(".index.1.old")
with lock_folder(folder):
    folder.rename(old)
    print("between", flush=True)
    time.sleep(0.5)
    folder.with_name(".index.new").rename(folder)
    shutil.rmtree(old)
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=PROJECT
    ) as other:
        assert other.stdout is not None and other.stdout.readline() == "between\n"
        start = time.perf_counter()
        put_back(index)
        assert time.perf_counter() - start > 0.3
    assert other.returncode == 0
    assert bytes_of(index) == bytes_of(editions["newest"]) and os.listdir(tmp_path) == ["index"]


def test_what_was_half_written_goes(tmp_path, editions):
    leave(editions["old"], tmp_path / "index")
    before = bytes_of(tmp_path / "index")
    for name in (".index.faiss.1.partial", "vectors/.00001.npy.1.partial"):
        (tmp_path / "index" / name).touch()
    for name in (".tokens-0.1.partial", ".passages.1.partial"):
        (tmp_path / "index" / name / "deep").mkdir(parents=True)
    tidy(tmp_path / "index")
    assert bytes_of(tmp_path / "index") == before
    assert not list((tmp_path / "index").glob(".*.partial"))

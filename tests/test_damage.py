"""Files that were cut short, altered, exchanged or lost: what opening notices, what verify does, what neither may do.

Damage is tried in a process beside this one, since Arrow and FAISS can end one.
"""

import multiprocessing
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
import pytest
from conftest import PASSAGES, build_tiny_index, tiny_bart, word_tokenizer
from omegaconf import OmegaConf

from rag.errors import UserError
from rag.files import write_json
from rag.generators.seq2seq import Generator
from rag.index.folder import Index
from rag.model import ClosedBook
from rag.parts import save_model
from rag.reopen import reopen
from rag.saved_model import verify_model

WORDS = sorted({word for _, text in PASSAGES for word in text.split()})
PEOPLE = [
    (f"Paris {number}", " ".join(np.random.default_rng(number).choice(WORDS, 12))) for number in range(90)
]
QUIET, TOLD, UNTOLD = 0, 1, 2  # what opening and using does: nothing to see, a UserError, anything else


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def empty(file: Path) -> None:
    file.write_bytes(b"")


def gone(file: Path) -> None:
    file.unlink()


def longer(file: Path) -> None:
    file.write_bytes(file.read_bytes() + b"\0")


def a_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def zeros(file: Path) -> None:
    content = bytearray(file.read_bytes())
    third = len(content) // 3
    content[third : third + max(8, third // 2)] = bytes(max(8, third // 2))
    file.write_bytes(content)


def noise(file: Path) -> None:
    file.write_bytes(np.random.default_rng(0).bytes(file.stat().st_size))


def flipped(position: float) -> Callable[[Path], None]:
    """One bit, at this share of the file."""

    def flip(file: Path) -> None:
        content = bytearray(file.read_bytes())
        content[int(position * (len(content) - 1))] ^= 1 << 6
        file.write_bytes(content)

    flip.__name__ = f"bit at {position:.3f}"
    return flip


DAMAGE = [cut, empty, gone, longer, a_folder, zeros, noise]
DAMAGE += [
    flipped(position) for position in (0.0, 0.001, 0.05, 0.11, 0.27, 0.4, 0.5, 0.63, 0.8, 0.93, 0.999, 1.0)
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory, passage_encoder) -> Path:
    """An index of three shards with a generator's tokens."""
    folder = tmp_path_factory.mktemp("whole") / "index"
    index = build_tiny_index(folder, passage_encoder, PEOPLE, "IVF2,Flat", shard_size=40)
    index.tokens(word_tokenizer(WORDS), show_progress=False)
    return folder


def use(folder: Path) -> None:
    """Everything that is asked of an index."""
    index = Index.open(folder)
    tokens = index.tokens(word_tokenizer(WORDS), show_progress=False)
    queries = np.random.default_rng(0).standard_normal((20, index.dim), np.float32)
    _, rows = index.search(queries, 10)
    index.passages.ids(rows.reshape(-1))
    everything = np.arange(len(index))
    assert tokens.gather(everything)[0].max() < 1_000
    assert np.isfinite(index.vectors(everything)).all()
    assert len(list(index.passages)) == len(index) == len(index.passages.slice(0, len(index)))
    assert all(index.passages[int(row)].id for row in everything)
    index.passages.row_of(index.passages.ids([5])[0])


def verify(folder: Path) -> None:
    Index.open(folder).verify()


def judged(of: Callable[[Path], object], folder: Path) -> int:
    """What `of(folder)` does; anything but a UserError is shown."""
    try:
        of(folder)
    except UserError as error:
        return TOLD if "\n" not in str(error) else UNTOLD
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.__stderr__)
        return UNTOLD
    return QUIET


class Beside:
    """A process beside this one that tries what may end it. One after another: copying this one's memory takes longer
    than what is tried, so that only what was ended has a successor."""

    def __init__(self):
        self._begin()

    def _begin(self) -> None:
        self.pool = ProcessPoolExecutor(1, multiprocessing.get_context("fork"))

    def outcome(self, of: Callable[[Path], object], folder: Path) -> int:
        try:
            return self.pool.submit(judged, of, folder).result()
        except BrokenProcessPool:
            self.pool.shutdown()  # and its thread, so that the next is not forked beside one
            self._begin()
            return UNTOLD


@pytest.fixture
def beside() -> Iterator[Beside]:
    if not hasattr(os, "fork"):
        pytest.skip("damage is tried in a process of its own")
    sys.stdout.flush()
    beside = Beside()
    yield beside
    beside.pool.shutdown()


def test_what_ends_a_process_is_untold(beside, tmp_path):
    assert beside.outcome(os.listdir, tmp_path) == QUIET
    assert beside.outcome(os.listdir, tmp_path / "no") == UNTOLD  # FileNotFoundError
    assert beside.outcome(os._exit, 3) == beside.outcome(os._exit, 0) == UNTOLD  # type: ignore[arg-type]
    assert beside.outcome(Index.open, tmp_path) == TOLD


def test_no_damage_to_an_index_goes_unnoticed_or_ends_in_a_traceback(whole, beside, tmp_path):
    files = sorted(
        file.relative_to(whole)
        for file in whole.rglob("*")
        if file.is_file() and not file.name.startswith(".")
    )
    left_out = {Path("vectors/seconds-0-of-1.json")}  # how long it took, which decides nothing
    assert beside.outcome(use, whole) == beside.outcome(verify, whole) == QUIET
    unnoticed, untold, tried = [], [], 0
    for name in sorted({*files} - left_out):
        for damage in DAMAGE:
            tried += 1
            folder = tmp_path / str(tried)  # nothing in the process knows it
            shutil.copytree(whole, folder, copy_function=os.link)
            one = folder / name
            one.unlink()
            shutil.copy(whole / name, one)
            damage(one)
            if beside.outcome(use, folder) not in (QUIET, TOLD):
                untold.append((str(name), damage.__name__))
            if beside.outcome(verify, folder) != TOLD:
                unnoticed.append((str(name), damage.__name__))
            shutil.rmtree(folder)
    print(f"{tried} kinds of damage")
    assert not untold and not unnoticed and tried > 100


def test_no_damage_to_a_model_goes_unnoticed_or_ends_in_a_traceback(beside, tmp_path):
    whole = tmp_path / "whole"
    (whole / "model").mkdir(parents=True)
    tokenizer = word_tokenizer()
    model = ClosedBook(Generator(tiny_bart(len(tokenizer)), tokenizer))
    save_model(model, whole / "model", whole)
    (whole / "config.yaml").write_text(OmegaConf.to_yaml({"module": {"model": {}}}), encoding="utf-8")
    write_json(whole / "result.json", {})
    assert beside.outcome(reopen, whole) == beside.outcome(verify_model, whole) == QUIET
    assert verify_model(whole) > 4
    unnoticed, untold = [], []
    for name in sorted(file.relative_to(whole) for file in (whole / "model").rglob("*") if file.is_file()):
        for damage in DAMAGE:
            run = tmp_path / f"{name.name}-{damage.__name__}"
            shutil.copytree(whole, run)
            damage(run / name)
            if (opened := beside.outcome(reopen, run)) not in (QUIET, TOLD):
                untold.append((str(name), damage.__name__))
            if TOLD not in (
                opened,
                beside.outcome(verify_model, run),
            ):  # without model.json there are no hashes
                unnoticed.append((str(name), damage.__name__))
            shutil.rmtree(run)
    assert not untold and not unnoticed


def test_exchanged_files_and_vectors_that_are_not_finite(whole, tmp_path):
    """Each has its right size, so that opening may not notice; what was damaged is made again by itself."""

    def damaged(damage: Callable[[Path], None]) -> Path:
        shutil.rmtree(tmp_path / "index", ignore_errors=True)
        shutil.copytree(whole, tmp_path / "index")
        damage(tmp_path / "index")
        return tmp_path / "index"

    def swap(folder: Path) -> None:
        one, other = folder / "vectors" / "00000.npy", folder / "vectors" / "00001.npy"
        kept = one.read_bytes()
        assert kept != other.read_bytes()
        one.write_bytes(other.read_bytes())
        other.write_bytes(kept)

    def not_a_number(folder: Path) -> None:
        file = folder / "vectors" / "00002.npy"
        vectors = np.load(file)
        vectors[3] = np.nan
        np.save(file, vectors)

    with pytest.raises(
        UserError, match=r"00000.npy was altered since it was written: delete it and run build_index.py"
    ):
        Index.open(damaged(swap)).verify()
    folder = damaged(not_a_number)
    with pytest.raises(UserError, match=r"00002.npy was altered"):
        Index.open(folder).verify()
    with pytest.raises(UserError, match=r"00002.npy holds a vector that is not finite \(row 83\)"):
        Index.open(folder).vectors(np.array([1, 83]))


def test_more_shards_than_files_may_be_open(passage_encoder, tmp_path):
    """Ninety shards where a process may open 64 files: some are mapped again, and the vectors are the same."""
    pytest.importorskip("resource")
    index = build_tiny_index(tmp_path, passage_encoder, PEOPLE, shard_size=1)
    rows = np.arange(len(index))
    code = (
        "import resource, sys\nimport numpy as np\nfrom rag.index.folder import Index\n"
        "index = Index.open(sys.argv[1])\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (64, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))\n"
        "rows = np.arange(len(index))\n"
        "for order in (rows, rows[::-1], rows): vectors = index.vectors(order)\n"
        "sys.stdout.buffer.write(vectors.tobytes())"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout == index.vectors(rows).tobytes()

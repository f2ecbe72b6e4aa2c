"""Folders and files that the system makes difficult: each is read, passed over by name, or told in one sentence."""

import gzip
import json
import lzma
import mmap
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra.errors import InstantiationException

from rag import text_files
from rag.cli import mistakes_in_one_sentence
from rag.errors import UserError
from rag.files import read_json, write_json
from rag.index.documents import read_documents
from rag.index.passages import PassageStore, describe_corpus
from rag.index.readers import read_passages
from rag.tasks.qa import read_examples
from rag.text_files import text_lines, text_parts

NOBODY = 65534


def passages(path: Path) -> list[str]:
    return [passage.text for passage in read_passages(path)]


def documents(path: Path) -> list[str]:
    return [passage.text for passage in read_documents(path)]


def told(read: Callable, *arguments) -> str:
    with pytest.raises(UserError) as caught:
        list(read(*arguments))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("read", [passages, documents])
def test_links_in_circles_are_passed_over_by_name(tmp_path, read, caplog):
    folder = tmp_path / "notes"
    folder.mkdir()
    (folder / "a.txt").write_text("The shop opens at nine.")
    (folder / "up").symlink_to("..")
    (folder / "self").symlink_to("self")
    (folder / "gone.txt").symlink_to("nowhere.txt")
    (folder / "linked.txt").symlink_to("a.txt")  # an ordinary file after all
    os.mkfifo(folder / "pipe.txt")
    assert read(folder) == ["The shop opens at nine."] * 2
    for passed_over in (
        "2 link to nothing (gone.txt, …)",
        "1 link to a folder (up)",
        "1 no ordinary file (pipe.txt)",
    ):
        assert passed_over in caplog.text
    assert "Too many levels of symbolic links" in told(read, folder / "self")
    assert "Too many levels of symbolic links" in told(read_examples, folder / "self")


@pytest.mark.parametrize("read", [passages, documents])
def test_twelve_hundred_folders_inside_one_another(tmp_path, read):
    here = os.getcwd()
    os.chdir(tmp_path)
    try:
        for _ in range(1_200):
            os.mkdir("d")
            os.chdir("d")
        Path("deep.txt").write_text("Deep down.")
    finally:
        os.chdir(here)
    (tmp_path / "e.txt").write_text("Above.")
    assert read(tmp_path) == ["Deep down.", "Above."]
    subprocess.run(["rm", "-r", str(tmp_path / "d")], check=True)  # too deep for shutil of older Pythons


def test_names_that_are_not_utf_8(tmp_path):
    name = os.fsdecode(b"caf\xe9")
    folder = tmp_path / name
    try:
        folder.mkdir()
    except OSError:
        pytest.skip("this file system takes UTF-8 names alone")
    (folder / f"{name}.txt").write_text("A text.")
    store = PassageStore.prepare(folder, tmp_path / "store")
    assert [(p.title, p.text) for p in store] == [("caf\ufffd", "A text.")]
    assert len(PassageStore.prepare(folder, tmp_path / "store")) == 1  # known again
    assert store.source is not None and store.source["sha256"] == describe_corpus(folder)["sha256"]
    assert [(p.id, p.title) for p in read_documents(folder)] == [("caf\ufffd.txt#1", "caf\ufffd")]
    write_json(tmp_path / "a.json", {"path": str(folder)})
    assert Path(read_json(tmp_path / "a.json")["path"]) == folder
    # The sentence can be shown.
    (folder / "q.jsonl").write_text("{")
    code = (
        "import sys\nfrom rag.cli import mistakes_in_one_sentence\nfrom rag.tasks.qa import read_examples\n"
        "with mistakes_in_one_sentence(): read_examples(sys.argv[1])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder / "q.jsonl")],
        capture_output=True,
        env={**os.environ, "LC_ALL": "C.UTF-8"},
    )
    assert done.returncode == 2 and done.stderr.startswith(b"error: ") and done.stderr.count(b"\n") == 1


@pytest.mark.parametrize("name", ["x" * 5_000, "a\0b.tsv", "a\0b.jsonl"])
def test_names_that_no_system_takes(name):
    for read in (passages, documents, read_examples):
        assert len(told(read, name)) < 500


def as_nobody(*checks: Callable[[], str]) -> list[str]:
    """What each check says where it runs as a user who owns nothing; skips where nobody can become that one."""
    if os.name != "posix" or os.geteuid() != 0:
        pytest.skip("only root can become another user")
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            said = []
            for check in checks:
                try:
                    said.append(f"read: {check()}")
                except UserError as error:
                    said.append(str(error))
                except BaseException as error:
                    said.append(f"BROKEN {error!r}")
            os.write(writing, json.dumps(said).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with open(reading, "rb") as pipe:
        content = pipe.read()
    os.waitpid(child, 0)
    return json.loads(content)


def test_a_reader_without_rights_is_told_so(tmp_path):
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)
    files = {
        "q.jsonl": '{"question": "q", "answers": ["a"]}',
        "p.tsv": "id\ttext\n1\tx\n",
        "p.parquet": "PAR1",
        "a.json": "{}",
    }
    for name, content in files.items():
        (tmp_path / name).write_text(content)
        (tmp_path / name).chmod(0)
    closed = tmp_path / "closed"
    closed.mkdir()
    (closed / "a.txt").write_text("text")
    (closed / "store.json").write_text("{}")
    closed.chmod(0)
    mixed = tmp_path / "mixed"
    (mixed / "inner").mkdir(parents=True)
    (mixed / "a.txt").write_text("text")
    (mixed / "inner").chmod(0)
    said = as_nobody(
        lambda: str(read_examples(tmp_path / "q.jsonl")),
        lambda: str(passages(tmp_path / "p.tsv")),
        lambda: str(passages(tmp_path / "p.parquet")),
        lambda: str(read_examples(tmp_path / "p.parquet")),
        lambda: str(passages(closed / "a.txt")),
        lambda: str(read_examples(closed / "q.jsonl")),
        lambda: str(passages(closed)),
        lambda: str(documents(closed)),
        lambda: str(passages(mixed)),  # what may not be seen is not silently left out
        lambda: str(read_json(tmp_path / "a.json")),
        lambda: str(read_json(closed / "a.json")),
        lambda: str(PassageStore.open(closed)),
    )
    assert len(said) == 12
    for sentence in said:
        assert "its permissions forbid it" in sentence or "Permission denied" in sentence, sentence
        assert not sentence.startswith(("BROKEN", "read")), sentence


@pytest.mark.parametrize(
    "content", ["[]", "null", "3", '"x"', "", "{", "[" * 100_000, "9" * 5_000, "\ufeff{}"]
)
def test_json_of_another_kind(tmp_path, content):
    file = tmp_path / "a.json"
    file.write_text(content, encoding="utf-8")
    assert told(read_json, file).startswith(f"{file} is ")
    (tmp_path / "store.json").write_text(content, encoding="utf-8")
    assert str(tmp_path) in told(PassageStore.open, tmp_path)


def test_a_folder_where_json_is_expected(tmp_path):
    (tmp_path / "store.json").mkdir()
    assert told(read_json, tmp_path / "store.json").endswith(
        "cannot be read (Is a directory): restore it or make it again"
    )
    assert "holds no passages" in told(PassageStore.open, tmp_path)


READ = """
import re, resource, sys
from pathlib import Path
from rag.errors import UserError
from rag.index.readers import read_passages
from rag.tasks.qa import read_examples
from rag.text_files import text_lines, text_parts

def peak():
    status = Path("/proc/self/status")
    if status.exists():  # Linux counts in ru_maxrss what the process had that started this one
        return int(re.search(r"VmHWM:\\s*(\\d+) kB", status.read_text())[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

before = peak()
for name in sys.argv[1:]:
    said = "read"
    try:
        for one in (read_passages if Path(name).name.startswith("p") else read_examples)(Path(name)):
            pass
    except UserError as error:
        said = str(error)
    print(name, (peak() - before) // 1024, said, sep="|")
"""


def test_a_packed_line_that_unpacks_to_100_mb_is_a_stream_or_refused(tmp_path):
    names = [
        "p.tsv",
        "p.csv",
        "p.jsonl",
        "p.json",
        "q.jsonl",
        "q.json",
        "q.qa.csv",
        "q.source",
        "p.txt",
        "p.md",
    ]
    block = gzip.compress(b"x" * 1_000_000)  # 100 of them, one after the other, are a .gz as well
    for name in names:
        begin = {".jsonl": b'{"question": "', ".json": b'[{"question": "'}.get(Path(name).suffix, b"")
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(begin) + 100 * block)
    (tmp_path / "q.target.gz").write_bytes(gzip.compress(b"a\n"))
    files = [str(tmp_path / f"{name}.gz") for name in names]
    done = subprocess.run([sys.executable, "-c", READ, *files], capture_output=True, text=True, check=True)
    for name, line in zip(names, done.stdout.splitlines(), strict=True):
        _, megabytes, said = line.split("|", 2)
        assert int(megabytes) < 200, name  # as where 200 MB are unpacked
        assert said == "read" if name in ("p.txt", "p.md") else "more than 16 MB without an end" in said, name


def test_too_few_file_descriptors(tmp_path):
    """A corpus of 300 files is read where 64 may be open."""
    for number in range(300):
        (tmp_path / f"{number:03}.txt").write_text(f"Text {number}.")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    opened = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").is_dir() else 64
    resource.setrlimit(resource.RLIMIT_NOFILE, (opened + 10, hard))
    try:
        assert len(passages(tmp_path)) == 300
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_too_many_open_files_are_one_sentence(capsys):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 256), hard))
    held = []
    try:
        with pytest.raises(SystemExit) as ended, mistakes_in_one_sentence():
            while True:
                held.append(os.open(os.devnull, os.O_RDONLY))
    finally:
        for each in held:
            os.close(each)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert ended.value.code == 2
    assert "may open no more files: raise the limit" in capsys.readouterr().err


@pytest.mark.parametrize(
    "exhaust",
    [
        lambda: bytearray(1 << 62),
        lambda: torch.empty(1 << 44),
        lambda: np.empty(1 << 58, dtype=np.uint8),
        lambda: mmap.mmap(-1, 1 << 46, flags=mmap.MAP_PRIVATE),
    ],
)
@pytest.mark.parametrize("wrapped", [False, True])
def test_no_memory_is_one_sentence_that_names_what_to_lower(exhaust, wrapped, capsys):
    with pytest.raises(SystemExit) as ended, mistakes_in_one_sentence("datamodule.batch_size or n_docs"):
        try:
            exhaust()
        except Exception as error:
            if not wrapped:
                raise
            raise InstantiationException("Error in call to target 'x'") from error
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert "memory ran out: end other programs" in said and "or lower datamodule.batch_size or n_docs" in said
    assert said.count("\n") == 1


def test_an_error_that_is_raised_from_itself_ends(capsys):
    with pytest.raises(SystemExit), mistakes_in_one_sentence():
        error = InstantiationException("Error in call to target 'x'")
        raise error from error
    assert "a setting is wrong" in capsys.readouterr().err


@pytest.mark.parametrize("suffix", [".gz", ".xz"])
def test_a_packed_file_that_unpacks_to_far_more_than_text_does_is_refused(tmp_path, monkeypatch, suffix):
    """Of passages, of questions, of documents: none is read to its end, whatever its form."""
    monkeypatch.setattr(text_files, "MOST_UNPACKED", 1 << 20)
    line = json.dumps({"id": 1, "question": "a" * 9_000, "text": "b", "answers": ["c"]}) + "\n"
    pack = gzip.compress if suffix == ".gz" else lzma.compress
    file = tmp_path / f"bomb.jsonl{suffix}"
    file.write_bytes(pack((line * 400).encode()))
    said = rf"bomb.jsonl\{suffix} unpacks to more than 200 times its size, which no text does"
    with pytest.raises(UserError, match=said):
        list(read_examples(file))
    with pytest.raises(UserError, match=said):
        for _ in text_lines(file):
            pass
    with pytest.raises(UserError, match=said):
        for _ in text_parts(file):
            pass


def test_what_packs_well_is_read(tmp_path):
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"the same line\n" * 50_000))
    assert sum(1 for _ in text_lines(tmp_path / "a.txt.gz")) == 50_000

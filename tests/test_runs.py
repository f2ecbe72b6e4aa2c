"""Run folders and files written aside: what is refused, what stays, what a run knows itself by."""

import json
import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from rag import fingerprints, runs
from rag.errors import UserError
from rag.files import hash_file, replace_folder, write_aside, write_json
from rag.fingerprints import described, fingerprint, hash_of
from rag.runs import Run, differences, is_reported, portable, tidy


def open_run(
    folder: Path, lr: float = 0.1, inputs: tuple[Path, ...] = (), overwrite: bool | str = False
) -> Run:
    return Run.open(
        folder, {"optimizer": {"lr": lr}}, f"lr: {lr}\n", [str(path) for path in inputs], overwrite
    )


def test_opening_writes_nothing_and_beginning_does(tmp_path):
    run = open_run(tmp_path / "deep" / "run")
    assert not run.finished and not run.resumable and not list(tmp_path.iterdir())
    run.begin()
    assert (run.folder / "config.yaml").read_text() == "lr: 0.1\n"
    assert not open_run(run.folder).finished
    run.finish({"em": 0.5})
    assert open_run(run.folder).finished
    assert json.loads((run.folder / "result.json").read_text())["em"] == 0.5


def test_a_checkpoint_makes_it_resumable_until_it_is_finished(tmp_path):
    run = open_run(tmp_path / "run")
    run.begin()
    (run.folder / "last.ckpt").touch()
    assert open_run(run.folder).resumable
    run.finish({})
    assert not open_run(run.folder).resumable


def test_another_run_is_refused_by_the_setting_that_changed_and_stays_until_the_new_one_begins(tmp_path):
    old = open_run(tmp_path / "run")
    old.begin()
    old.finish({"em": 0.5})
    with pytest.raises(UserError, match=r"made with other settings \(optimizer.lr: 0.1 → 0.2\)"):
        open_run(tmp_path / "run", lr=0.2)
    new = open_run(tmp_path / "run", lr=0.2, overwrite="changed")
    assert (tmp_path / "run" / "result.json").exists()
    new.begin()
    assert not (tmp_path / "run" / "result.json").exists()
    assert open_run(tmp_path / "run", lr=0.2, overwrite="changed").begun
    assert not open_run(tmp_path / "run", lr=0.2, overwrite=True).begun


def test_whenever_beginning_is_cut_short_the_same_command_takes_the_folder_up(tmp_path, monkeypatch):
    """A new run, and one that replaces another, killed before each of its changes to the disk in turn."""

    class Killed(BaseException):
        pass

    left = 0

    def before(change):
        def counted(*arguments, **settings):
            nonlocal left
            left -= 1
            if left < 0:
                raise Killed
            return change(*arguments, **settings)

        return counted

    for name in ("mkdir", "unlink", "replace", "write_text"):
        monkeypatch.setattr(Path, name, before(getattr(Path, name)))
    monkeypatch.setattr(runs.shutil, "rmtree", before(runs.shutil.rmtree))
    for replaces in (False, True):
        for number in range(20):
            folder = tmp_path / f"{replaces}-{number}"
            left = 1000
            if replaces:
                old = open_run(folder, lr=0.2)
                old.begin()
                (folder / "last.ckpt").touch()
                (folder / "model").mkdir()
                old.finish({"em": 0.5})
            left = number
            with suppress(Killed):
                open_run(folder, overwrite="changed").begin()
            whole, left = left >= 0, 1000
            again = open_run(folder, overwrite="changed")
            assert not again.finished and not again.resumable
            again.begin()
            assert json.loads((folder / "run.json").read_text())["identity"] == again.record["identity"]
            assert (folder / "config.yaml").read_text() == "lr: 0.1\n"
            assert {file.name for file in folder.iterdir()} == {".lock", "run.json", "config.yaml"}
            if whole:
                break
        else:
            raise AssertionError("it never came to its end")


def test_two_processes_do_not_work_in_one_folder(tmp_path):
    open_run(tmp_path / "run").begin()
    open_run(tmp_path / "run").begin()  # the process itself may
    code = (
        "import sys; sys.path.insert(0, 'tests'); from pathlib import Path; from test_runs import open_run\n"
        "from rag.errors import UserError\n"
        f"run = open_run(Path({str(tmp_path / 'run')!r}))\n"
        "try: run.begin()\n"
        "except UserError as error: print(error)"
    )
    other = subprocess.run([sys.executable, "-c", code], cwd=runs.PROJECT, capture_output=True, text=True)
    assert f"another process is at work in {tmp_path / 'run'}: wait until it has ended" in other.stdout, (
        other.stderr
    )


def test_other_peoples_files_are_never_replaced(tmp_path):
    (tmp_path / "letter.txt").touch()
    for overwrite in (False, True, "changed"):
        with pytest.raises(UserError, match="holds files that do not belong to a run"):
            open_run(tmp_path, overwrite=overwrite)


def test_a_moved_checkout_knows_its_runs(tmp_path, monkeypatch):
    """The same command, typed in /old and then in /new, with all files moved."""
    for checkout in ("old", "new"):
        (tmp_path / checkout / "data").mkdir(parents=True)
        (tmp_path / checkout / "data" / "train.jsonl").write_text("same")

    def begin(checkout: str) -> Run:
        project = tmp_path / checkout
        monkeypatch.setattr(runs, "PROJECT", project)
        data = project / "data" / "train.jsonl"
        return Run.open(project / "run", {"task": {"train": str(data)}}, f"train: {data}\n", [str(data)])

    first = begin("old")
    first.begin()
    first.finish({})
    assert (first.folder / "config.yaml").read_text() == "train: ${project:}/data/train.jsonl\n"
    first.folder.rename(tmp_path / "new" / "run")
    assert begin("new").finished
    (tmp_path / "new" / "data" / "train.jsonl").write_text("other")
    with pytest.raises(UserError, match=r"\$\{project:\}/data/train.jsonl has changed"):
        begin("new")


def test_only_the_projects_own_folder_is_replaced(monkeypatch):
    monkeypatch.setattr(runs, "PROJECT", Path("/home/me/rag"))
    before = ["/home/me/rag", "/home/me/rag/data", "/home/me/rag2/data", "/home/me/rag-old", "rag", 3, None]
    after = ["${project:}", "${project:}/data", "/home/me/rag2/data", "/home/me/rag-old", "rag", 3, None]
    assert portable({"paths": before}) == {"paths": after}


def index_in(folder: Path, faiss: str, seconds: float) -> Path:
    """The files of an index as far as its identity goes."""
    (folder / "passages").mkdir(parents=True, exist_ok=True)
    (folder / "index.faiss").write_text(faiss)
    write_json(folder / "passages" / "store.json", {"seconds": seconds})
    record = {"files": described(folder), "search": {"refine": 1}, "encoder": {"weights": "w"}}
    record["files"].pop("manifest.json", None)
    write_json(folder / "manifest.json", record | {"ms_per_query": seconds})
    return folder


def test_an_index_is_known_by_its_content_and_not_by_how_fast_it_was(tmp_path):
    one, quicker, other = (
        fingerprint(index_in(tmp_path / name, *of))
        for name, of in {"a": ("a", 1.0), "b": ("a", 2.0), "c": ("b", 1.0)}.items()
    )
    assert one == quicker != other
    (tmp_path / "a" / "index.faiss").write_text("x")
    with pytest.raises(UserError, match=r"index.faiss was altered since it was written: see build_index.py"):
        fingerprint(tmp_path / "a")


def test_what_stands_around_an_input_is_no_part_of_it(tmp_path):
    """A result.json of another program above it neither crashes nor freezes it; of a run only what is read counts."""
    dev = tmp_path / "data" / "dev.jsonl"
    dev.parent.mkdir()
    dev.write_text("40 questions")
    before = fingerprint(dev), fingerprint(dev.parent)
    for content in ("[]", "{", '{"identity": "x"}'):
        (tmp_path / "result.json").write_text(content)
        assert (fingerprint(dev), fingerprint(dev.parent)) == before
    (dev.parent / "result.json").write_text('{"identity": "x"}')
    dev.write_text("7 questions")
    assert fingerprint(dev) != before[0]

    run = tmp_path / "run"
    (run / "model").mkdir(parents=True)
    for name in ("run.json", "config.yaml", "model/weights", "metrics.csv", "result.json"):
        (run / name).write_text(name)
    whole = fingerprint(run)
    (run / "metrics.csv").write_text("other")
    (run / "result.json").write_text("{}")
    assert fingerprint(run) == whole
    (run / "model" / "weights").write_text("other")
    assert fingerprint(run) != whole


def test_a_large_file_is_read_once_and_again_when_it_changed(tmp_path, monkeypatch):
    monkeypatch.setattr(fingerprints, "REMEMBERED", 1)
    monkeypatch.setenv("RAG_CACHE", str(tmp_path / "cache"))
    read = []
    monkeypatch.setattr(fingerprints, "hash_file", lambda file: read.append(file) or hash_file(file))
    file = tmp_path / "corpus.tsv"
    file.write_bytes(b"one")
    fresh = hash_of(file), hash_of(file)
    assert (
        fresh == (hash_file(file),) * 2 and len(read) == 2
    )  # it changed just now, and may again within the tick
    long_ago = time.time() - 60
    os.utime(file, (long_ago, long_ago))
    assert hash_of(file) == hash_of(file) == fresh[0] and len(read) == 3
    file.write_bytes(b"two")
    os.utime(file, (long_ago, long_ago))  # the same size and time of change, as after a copy that keeps times
    assert hash_of(file) == hash_file(file) != fresh[0] and len(read) == 4
    monkeypatch.setenv("RAG_CACHE", str(file))  # no folder: nothing is remembered
    assert hash_of(file) == hash_file(file) and len(read) == 5


def test_inputs_that_are_not_files():
    assert fingerprint("hub://owner/name/config/split") == "hub://owner/name/config/split"
    with pytest.raises(UserError, match="nowhere does not exist, and this run needs it"):
        fingerprint("nowhere")


def test_differences_name_settings_and_inputs():
    before = {"config": {"a": {"b": 1, "c": 2}}, "inputs": {"x": "1", "y": "2"}}
    after = {"config": {"a": {"b": 1, "c": 3}, "d": "text" * 40}, "inputs": {"x": "9", "z": "2"}}
    assert differences(before, after) == [
        "a.c: 2 → 3",
        f"d: None → {('text' * 40)[:60]}…",
        "x has changed",
        "y is not needed any more",
        "z was not there",
    ]


def test_a_file_in_the_way_of_a_folder_is_told(tmp_path):
    (tmp_path / "file").write_text("mine")
    for path in (tmp_path / "file" / "a.json", tmp_path / "file" / "deep" / "a.json", tmp_path / ("a" * 300)):
        with pytest.raises(UserError, match="cannot be written"):
            write_json(path, 1)
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match="Is a directory"):
        write_json(tmp_path / "folder", 1)
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"] and (tmp_path / "file").read_text() == "mine"


@pytest.mark.skipif(os.name != "posix", reason="there are no such permissions")
def test_others_may_read_weights_as_they_may_read_other_files(tmp_path):
    """safetensors writes files that their owner alone may read."""
    with write_aside(tmp_path / "model") as aside:
        aside.mkdir()
        save_file({"a": torch.zeros(1)}, aside / "a.safetensors")
    (tmp_path / "new").touch()
    modes = {file.stat().st_mode & 0o777 for file in (tmp_path / "model" / "a.safetensors", tmp_path / "new")}
    assert len(modes) == 1


def test_folders_made_for_a_file_go_with_it_if_it_fails(tmp_path):
    with pytest.raises(ZeroDivisionError), write_aside(tmp_path / "a" / "b" / "file") as aside:
        aside.write_text("half")
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())
    with write_aside(tmp_path / "a" / "b" / "file") as aside:
        aside.write_text("whole")
    assert (tmp_path / "a" / "b" / "file").read_text() == "whole"


def test_a_folder_is_replaced_as_a_whole(tmp_path):
    for content in ("old", "new"):
        with write_aside(tmp_path / "model") as aside:
            aside.mkdir()
            (aside / content).touch()
    assert os.listdir(tmp_path) == ["model"] and os.listdir(tmp_path / "model") == ["new"]


def test_a_finished_run_is_tidied_unless_another_process_is_at_work_there(tmp_path):
    run = open_run(tmp_path / "run")
    run.begin()
    left = ["parts", ".parts.old", ".report.png.12.partial", "last-before.ckpt"]
    for name in left[:2]:
        (run.folder / name).mkdir()
    for name in left[2:]:
        (run.folder / name).touch()
    run.finish({})
    code = f"from rag.runs import tidy; from pathlib import Path; print(tidy(Path({str(run.folder)!r})))"
    other = subprocess.run([sys.executable, "-c", code], cwd=runs.PROJECT, capture_output=True, text=True)
    assert other.stdout == "False\n" and set(left) <= set(os.listdir(run.folder))
    assert tidy(run.folder)
    assert sorted(os.listdir(run.folder)) == [".lock", "config.yaml", "result.json", "run.json"]


def test_a_report_is_one_if_it_is_newer_than_what_it_tells_of_and_has_its_picture(tmp_path):
    page, picture = tmp_path / "report.md", tmp_path / "report.png"
    for number, file in enumerate((tmp_path / "result.json", page)):
        file.write_text("no picture")
        os.utime(file, (number, number))
    assert is_reported(tmp_path)
    page.write_text("![curves](report.png)")
    assert not is_reported(tmp_path)
    picture.touch()
    assert is_reported(tmp_path)
    os.utime(page, (0, 0))
    os.utime(tmp_path / "result.json", (1, 1))
    assert not is_reported(tmp_path)
    page.unlink()
    assert not is_reported(tmp_path)


def test_what_an_earlier_process_of_the_same_number_left_is_no_hindrance(tmp_path):
    """In a container every command may have the number 7."""
    for aside in (tmp_path / f".model.{os.getpid()}.partial", tmp_path / f".model.{os.getpid()}.old"):
        (aside / "deep").mkdir(parents=True)
    for content in ("old", "new"):
        with write_aside(tmp_path / "model") as aside:
            aside.mkdir()
            (aside / content).touch()
    (tmp_path / f".model.{os.getpid()}.old" / "deep").mkdir(parents=True)
    (tmp_path / "next").mkdir()
    replace_folder(tmp_path / "next", tmp_path / "model")
    assert os.listdir(tmp_path) == ["model"] and not os.listdir(tmp_path / "model")

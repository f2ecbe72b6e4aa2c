"""Datasets of ir_datasets by their ids, and BEIR's folders: the package's own, over small files in their layout."""

import json
import sys
import zipfile
from pathlib import Path

import pytest
from commands import run
from conftest import PASSAGES

from rag.errors import UserError
from rag.files import read_json
from rag.index.passages import PassageStore
from rag.index.readers import read_passages
from rag.metrics.record import find, records_of
from rag.tasks import ir_datasets as ours
from rag.tasks.qa import read_examples

QUERIES = {
    "1": "what is the capital of France?",
    "2": "which river runs through Rome",
    "3": "asked in training",
}
JUDGED = {"test": "1\t0\t2\n1\t5\t0\n2\t6\t1\n", "train": "3\t4\t1\n"}


def write_beir(folder: Path) -> Path:
    """A folder as BEIR lays it out."""
    (folder / "qrels").mkdir(parents=True)
    documents = [{"_id": str(n), "title": title, "text": text} for n, (title, text) in enumerate(PASSAGES)]
    documents.append({"_id": "empty", "title": "", "text": ""})
    documents.append({"_id": "titled", "title": "A title alone", "text": ""})
    queries = [{"_id": id, "text": text, "metadata": {}} for id, text in QUERIES.items()]
    for name, records in (("corpus", documents), ("queries", queries)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(each) + "\n" for each in records))
    for split, judged in JUDGED.items():
        (folder / "qrels" / f"{split}.tsv").write_text("query-id\tcorpus-id\tscore\n" + judged)
    return folder


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """What ir_datasets has downloaded: BEIR's archive of scifact, with small files in it."""
    folder = write_beir(tmp_path / "made" / "scifact")
    place = tmp_path / "home" / "beir" / "scifact"
    place.mkdir(parents=True)
    with zipfile.ZipFile(place / "source.zip", "w") as archive:
        for file in sorted(folder.rglob("*.*")):
            archive.write(file, file.relative_to(folder.parent))
    monkeypatch.setenv("IR_DATASETS_HOME", str(tmp_path / "home"))
    for name in [name for name in sys.modules if name.split(".")[0] == "ir_datasets"]:
        monkeypatch.delitem(sys.modules, name)  # it reads the variable when it is imported
    return tmp_path / "home"


def test_a_dataset_is_written_as_beir_lays_it_out(home, tmp_path, capsys):
    ours.export("beir/scifact", tmp_path / "data")
    passages = list(
        read_passages(tmp_path / "data")
    )  # the folder itself: corpus.jsonl, not the queries beside it
    assert [(each.title, each.text) for each in passages] == [*PASSAGES, ("A title alone", "A title alone")]
    assert [each.id for each in passages] == [*map(str, range(len(PASSAGES))), "titled"]
    out = capsys.readouterr().out
    assert "1 documents without a text are left out" in out and "questions of train, test" in out
    test = read_examples(tmp_path / "data" / "qrels" / "test.tsv")
    assert [(each.question, each.id, each.positive_ids) for each in test] == [
        (QUERIES["1"], "1", ("0",)),
        (QUERIES["2"], "2", ("6",)),
    ]
    assert read_examples(tmp_path / "data") == test  # of the folder: test
    assert [each.question for each in read_examples(tmp_path / "data" / "qrels" / "train.tsv")] == [
        QUERIES["3"]
    ]
    (home / "beir" / "scifact" / "source.zip").unlink()
    ours.export("beir/scifact", tmp_path / "data")  # it is there


def test_a_part_of_a_dataset_has_its_own_judgments_as_test(home, tmp_path):
    ours.export("beir/scifact/train", tmp_path / "data")
    assert [each.question for each in read_examples(tmp_path / "data")] == [QUERIES["3"]]
    assert len(PassageStore.prepare(tmp_path / "data", tmp_path / "store")) == len(PASSAGES) + 1


def test_bm25_over_a_dataset_by_its_id(home, tmp_path, capsys):
    command = [
        "reader=none",
        "retriever=bm25",
        "corpus=ir_datasets",
        "corpus.id=beir/scifact",
        "task=ir_datasets",
    ]
    command += [
        "trec=true",
        f"paths.data={tmp_path / 'data'}",
        f"results={tmp_path / 'results'}",
        "recall_at=[1,5]",
    ]
    assert run("evaluate", *command) == 0, capsys.readouterr().err
    records = records_of(read_json(tmp_path / "results" / "result.json"))
    first, fifth = find(records, "recall", 1), find(records, "recall", 5)
    assert first is not None and (first.value, first.n) == (
        0.5,
        2,
    )  # Rome's own article comes before the Tiber's
    assert fifth is not None and fifth.value == 1.0
    said = read_json(tmp_path / "results" / "trec" / "measures.json")
    assert said["recall"]["nDCG@10"]["value"] == pytest.approx(0.75)  # ranks 1 and 3: (1 + 1/log2(4)) / 2
    assert list(said) == ["recall"]
    found = [json.loads(line) for line in (tmp_path / "results" / "fid.jsonl").read_text().splitlines()]
    assert "answers" not in found[0] and found[0]["ctxs"][0]["id"] == "0"
    assert (tmp_path / "data" / "ir_datasets" / "beir" / "scifact" / "corpus.jsonl").is_file()


@pytest.mark.parametrize(
    "id, problem",
    [
        ("beir/nothing", "corpus.id=beir/nothing does not exist in ir_datasets: give one of its ids"),
        ("???", "corpus.id has no value and this run needs it: give corpus.id="),
    ],
)
def test_what_is_wrong_is_told(id, problem, home, tmp_path, capsys):
    command = [
        "reader=none",
        "retriever=bm25",
        "corpus=ir_datasets",
        "task=ir_datasets",
        f"paths.data={tmp_path}",
    ]
    assert run("evaluate", *command, *([] if id == "???" else [f"corpus.id={id}"])) == 2
    error = capsys.readouterr().err
    assert problem in error and len(error.splitlines()) == 1


def test_without_the_package_its_files_are_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(ours, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="is a dataset of ir_datasets, which is not installed: pip install"):
        ours.export("beir/scifact", tmp_path / "data")


def test_an_archive_that_is_none_is_told_and_nothing_is_left(home, tmp_path):
    (home / "beir" / "scifact" / "source.zip").write_bytes(b"no archive")
    with pytest.raises(
        UserError, match=r"beir/scifact cannot be had from ir_datasets \(.*zip.*\): go online, or put"
    ):
        ours.export("beir/scifact", tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_beirs_folder_is_a_corpus_and_a_question_file(tmp_path, capsys):
    """Without ir_datasets: corpus.path and task.test name the folder."""
    folder = write_beir(tmp_path / "scifact")
    lines = (folder / "corpus.jsonl").read_text().splitlines()[: len(PASSAGES)]
    (folder / "corpus.jsonl").write_text("\n".join(lines))
    command = ["reader=none", "retriever=bm25", f"corpus.path={folder}", "task=qa", f"task.test={folder}"]
    assert run("evaluate", *command, f"paths.data={tmp_path}", f"results={tmp_path / 'results'}") == 0
    assert "read as BEIR's queries and qrels (task.format=beir)" in capsys.readouterr().out
    recall = find(records_of(read_json(tmp_path / "results" / "result.json")), "recall", 5)
    assert recall is not None and recall.value == 1.0

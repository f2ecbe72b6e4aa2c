"""Recall of real retrieval, and memories exchanged, on passages written for it."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import retrieval
from rag.tasks.qa import read_examples

LEADERS = {  # country → leader in the old and in the new edition; a word of its own for each country
    "Varne": ("Ada Quill", "Bo Marsh"),
    "Ostrel": ("Cy Dunmore", "Cy Dunmore"),
    "Pellan": ("Di Fenwick", "Ed Garrow"),
}


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    for edition in (0, 1):
        lines = ["id\ttext\ttitle"]
        for number, (country, leaders) in enumerate(LEADERS.items()):
            lines.append(
                f"{2 * number + 1}\tThe president of {country} is {leaders[edition].upper()}.\tGovernment"
            )
            lines.append(f"{2 * number + 2}\tThe harbour exports herring and salt.\tTrade {number}")
        (tmp_path / f"edition{edition}.tsv").write_text("\n".join(lines) + "\n")
    with open(tmp_path / "questions.jsonl", "w") as file:
        for number, (country, (old, new)) in enumerate(LEADERS.items()):
            record = {
                "question": f"who is the president of {country}",
                "answers": [old],
                "old": [old],
                "new": [new],
            }
            file.write(json.dumps(record | {"positive_ids": [2 * number + 1]}) + "\n")
    return {each.stem: each for each in tmp_path.iterdir()}


def test_bm25s_recall_by_ids_and_by_answers(files, tmp_path, capsys):
    command = ["recall", "--passages", str(files["edition1"]), "--questions", str(files["questions"])]
    retrieval.main([*command, "--folder", str(tmp_path / "work"), "--json", str(tmp_path / "rows.json")])
    rows = {row["metric"]: row for row in json.loads((tmp_path / "rows.json").read_text())}
    # each question shares its country with one passage alone; of the old answers the new edition holds one
    assert (rows["recall"]["1"], rows["recall"]["5"]) == (1.0, 1.0)
    assert rows["answer_recall"]["5"] == pytest.approx(1 / 3)
    assert "BM25" in capsys.readouterr().out


def test_a_memory_that_is_exchanged_is_right_on_the_diagonal(files, tmp_path, monkeypatch):
    monkeypatch.setattr(retrieval, "SWAP_KS", (1, 2))
    examples = {key: read_examples(files["questions"], key) for key in ("old", "new")}
    changed = retrieval.changed_answers(files["questions"], "old", "new")
    assert changed.tolist() == [True, False, True]
    editions = {"old": files["edition0"], "new": files["edition1"]}
    rows = retrieval.swap(editions, examples, changed, tmp_path / "work")
    cells = {(row["questions"], row["asked"], row["indexed"]): (row["1"], row["count"]) for row in rows}
    assert cells == {
        ("changed", "old", "old"): (1.0, 2),
        ("changed", "new", "new"): (1.0, 2),
        ("changed", "old", "new"): (0.0, 2),
        ("changed", "new", "old"): (0.0, 2),
        ("all", "old", "old"): (1.0, 3),
        ("all", "new", "new"): (1.0, 3),
        ("all", "old", "new"): (pytest.approx(1 / 3, abs=1e-4), 3),
        ("all", "new", "old"): (pytest.approx(1 / 3, abs=1e-4), 3),
    }


def test_an_index_is_opened_by_what_its_passages_are(files, tmp_path):
    store, index_folder = retrieval.store_of(files["edition0"], tmp_path / "work")
    again = retrieval.store_of(files["edition0"], tmp_path / "work")
    other = retrieval.store_of(files["edition1"], tmp_path / "work")
    assert (again[1], len(store)) == (index_folder, 6) and other[1] != index_folder
    np.testing.assert_array_equal(store.ids([0, 5]), ["1", "6"])

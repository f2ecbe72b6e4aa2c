"""Which column or field of a table is the id, the title or the text: by usual names, or by corpus.columns."""

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rag.errors import UserError
from rag.index.passage import Passage
from rag.index.readers import read_passages
from rag.index.reading import CorpusReading

ROWS = [
    {"key": "a1", "headline": "Rome", "body": "A city.", "text": "not this"},
    {"key": "a2", "headline": "Nile", "body": "A river.", "text": "nor this"},
]
MEANT = [Passage("a1", "Rome", "A city."), Passage("a2", "Nile", "A river.")]
COLUMNS = {"id": "key", "title": "headline", "text": "body"}


def write(path: Path, rows: list[dict]) -> Path:
    if path.name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.name.endswith(".jsonl"):
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.name.endswith(".json"):
        path.write_text(json.dumps(rows, indent=1))
    else:
        separator = "," if ".csv" in path.name else "\t"
        lines = [separator.join(map(str, values)) for values in ([*rows[0]], *(row.values() for row in rows))]
        content = ("\n".join(lines) + "\n").encode()
        path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


FORMS = ["p.tsv", "p.csv", "p.csv.gz", "p.txt", "p.jsonl", "p.json", "p.parquet"]


@pytest.mark.parametrize("name", FORMS)
def test_named_columns_of_every_form(tmp_path, name):
    path = write(tmp_path / name, ROWS)
    assert list(read_passages(path, CorpusReading(columns=COLUMNS))) == MEANT
    only_text = list(read_passages(path, CorpusReading(columns={"text": "body"})))
    assert only_text == [Passage("1", "", "A city."), Passage("2", "", "A river.")]
    others = list(read_passages(path, CorpusReading(columns={"title": "headline", "id": "key"})))
    assert [(p.id, p.title, p.text) for p in others] == [
        ("a1", "Rome", "not this"),
        ("a2", "Nile", "nor this"),
    ]


@pytest.mark.parametrize(
    "name", [each for each in FORMS if each != "p.txt"]
)  # without that header it is no table
@pytest.mark.parametrize("what", ["id", "title", "text"])
def test_a_column_that_is_not_there(tmp_path, name, what):
    path = write(tmp_path / name, ROWS)
    with pytest.raises(UserError) as error:
        list(read_passages(path, CorpusReading(columns=COLUMNS | {what: "bodi"})))
    sentence = str(error.value)
    assert f"bodi (corpus.columns.{what}): there are " in sentence and "\n" not in sentence
    assert all(column in sentence.partition("there are ")[2] for column in ROWS[0])


def test_a_title_that_some_objects_lack_is_empty(tmp_path):
    path = write(
        tmp_path / "p.jsonl", [{"text": "x"}, {"text": "y", "name": "Y"}, {"text": "z", "name": None}]
    )
    passages = read_passages(path, CorpusReading(columns={"title": "name"}))
    assert [p.title for p in passages] == ["", "Y", ""]


def test_a_text_that_is_numbers_or_lists(tmp_path):
    path = write(tmp_path / "p.jsonl", [{"body": ["a", "b"]}, {"body": 7}])
    assert [p.text for p in read_passages(path, CorpusReading(columns={"text": "body"}))] == ["a b", "7"]


def test_a_header_without_a_text_names_its_columns(tmp_path):
    path = write(tmp_path / "p.csv", [{"id": 1, "body": "x"}])
    with pytest.raises(UserError, match="no column text: .* or corpus.columns.text= one of id, body"):
        list(read_passages(path))
    path = write(tmp_path / "p.jsonl", [{"id": 1, "body": "x"}])
    with pytest.raises(UserError, match="line 1: no text among id, body: .* corpus.columns.text="):
        list(read_passages(path))
    path = write(tmp_path / "p.parquet", [{"id": 1, "body": "x"}])
    with pytest.raises(
        UserError, match="no column text: .* found id, body; corpus.columns.text= names another"
    ):
        list(read_passages(path))


# -- other tools' files --------------------------------------------------------------------------


def test_atlas_passages(tmp_path):
    """Whose passages are titled by the page and the section, as Atlas does itself."""
    rows = [
        {"id": "0", "title": "Rome", "section": "History", "text": "It was founded early."},
        {"id": "1", "title": "Rome", "section": "", "text": "A city."},
        {"id": "2", "title": "Nile", "text": "A river."},
    ]
    for name in ("p.jsonl", "p.parquet"):
        titles = [p.title for p in read_passages(write(tmp_path / name, rows))]
        assert titles == ["Rome: History", "Rome", "Nile"]
    titled = read_passages(tmp_path / "p.jsonl", CorpusReading(columns={"title": "title"}))
    assert [p.title for p in titled] == ["Rome", "Rome", "Nile"]


def test_ms_marcos_collection(tmp_path, caplog):
    (tmp_path / "collection.tsv").write_text(
        "0\tThe presence of communication amid scientific minds was equally important.\n1\tThe Manhattan Project.\n"
    )
    assert list(read_passages(tmp_path / "collection.tsv")) == [
        Passage("0", "", "The presence of communication amid scientific minds was equally important."),
        Passage("1", "", "The Manhattan Project."),
    ]
    assert "has no header: column 2 is read as the text, 1 as the id" in caplog.text


def save(folder: Path, rows: list[dict], **settings) -> Path:
    from datasets import Dataset

    Dataset.from_list(rows).save_to_disk(str(folder), **settings)
    return folder


def test_what_datasets_saved(tmp_path, caplog):
    rows = [
        {"id": str(n), "title": f"t{n}", "text": f"text {n}", "embeddings": [0.5] * 4} for n in range(2500)
    ]
    folder = save(tmp_path / "saved", rows, num_shards=3)
    passages = list(read_passages(folder))
    assert passages == [Passage(row["id"], row["title"], row["text"]) for row in rows]
    assert not caplog.text
    named = save(tmp_path / "named", ROWS)
    assert list(read_passages(named, CorpusReading(columns=COLUMNS))) == MEANT
    with pytest.raises(
        UserError, match="no column bodi .corpus.columns.text.: there are key, headline, body, text"
    ):
        list(read_passages(named, CorpusReading(columns={"text": "bodi"})))


def test_rows_that_datasets_had_chosen_are_saved_so(tmp_path):
    from datasets import Dataset

    chosen = Dataset.from_list([{"text": f"text {n}"} for n in range(9)]).select([7, 2])
    chosen.save_to_disk(str(tmp_path / "chosen"))
    assert [p.text for p in read_passages(tmp_path / "chosen")] == ["text 7", "text 2"]


def test_a_saved_dictionary_of_splits(tmp_path):
    from datasets import Dataset, DatasetDict

    one = Dataset.from_list([{"text": "x"}])
    DatasetDict({"train": one}).save_to_disk(str(tmp_path / "one"))
    assert [p.text for p in read_passages(tmp_path / "one")] == ["x"]
    DatasetDict({"train": one, "test": one}).save_to_disk(str(tmp_path / "two"))
    with pytest.raises(UserError, match="holds several splits: give one of them: .*two/train, .*two/test"):
        read_passages(tmp_path / "two")
    assert [p.text for p in read_passages(tmp_path / "two" / "test")] == ["x"]


def test_a_damaged_folder_of_datasets(tmp_path):
    folder = save(tmp_path / "saved", [{"text": f"text {n}"} for n in range(200)])
    (file,) = folder.glob("*.arrow")
    whole = file.read_bytes()
    for content in (b"", b"x" * 100, whole[: len(whole) // 2]):
        file.write_bytes(content)
        with pytest.raises(UserError, match="was cut short|is damaged after row|holds no"):
            list(read_passages(folder))
    file.write_bytes(whole.replace(b"text\0", b"\xf4ext\0"))  # a column's name that is no text
    with pytest.raises(UserError, match="is not a stream of Arrow's"):
        list(read_passages(folder))
    file.unlink()
    with pytest.raises(UserError, match="lacks data-00000-of-00001.arrow: save or copy it again"):
        read_passages(folder)
    (folder / "state.json").write_text("{}")
    with pytest.raises(UserError, match="state.json does not name the data files"):
        read_passages(folder)

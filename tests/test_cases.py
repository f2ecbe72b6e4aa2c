"""Corpora in the forms people really have, in small: read as they are meant, or refused in one sentence whose advice
works. The files that such forms came from are gone through in test_cases_corpus.py."""

import gzip
import json
import logging
from pathlib import Path

import pytest

from rag.errors import UserError
from rag.index.passage import Passage
from rag.index.passages import PassageStore
from rag.index.readers import read_passages
from rag.index.reading import CorpusReading

TWO_WORDS = CorpusReading(split="words", size=2)


def written(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.tsv", b"Rome\tThe city is old.\nNile\tA river.\n", [("1", "Rome"), ("2", "Nile")]),
        ("a.tsv", b"7\tThe city is old.\n9\tA river.\n", [("7", ""), ("9", "")]),  # ids and texts
        ("a.tsv", b"x1\tRome\tThe city is old.\nx2\tNile\tA river.\n", [("x1", "Rome"), ("x2", "Nile")]),
        ("a.tsv", b"TEXT\nThe city is old.\n", [("1", "")]),
        ("a.csv", b"id;text\n7;The city, which is old.\n", [("7", "")]),
        ("a.csv", b"sep=;\r\nid;text\r\n7;x, y\r\n", [("7", "")]),  # what a spreadsheet may say first
        ("a.txt", "id\ttitle\ttext\r\n7\tT\tx\r\n".encode("utf-16"), [("7", "T")]),  # its "Unicode text"
        ("a.csv", b"Rome,The city is old.\nNile,A river.\n", [("1", "Rome"), ("2", "Nile")]),
        ("a.csv", b'"Rome";"The city; it is old."\n"Nile";"A river."\n', [("1", "Rome"), ("2", "Nile")]),
        ("a.csv", b"id\ttext\n7\tx\n", [("7", "")]),
        ("a.jsonl", b'\xef\xbb\xbf{"id": 7, "text": "x"}\r\n\r\n', [("7", "")]),
        ("a.csv", b'"text","id"\r\n"The ""city""\nis old.","7"\r\n', [("7", "")]),
        ("a.csv.gz", gzip.compress(b"id,text\n7,x\n", mtime=0), [("7", "")]),
        ("a.tsv", b"id\ttext\r1\tA city.\r2\tA river.\r", [("1", ""), ("2", "")]),  # an old Mac's line ends
        ("a.tsv", "\ufeffid\ttext\n1\tA city.\n".encode(), [("1", "")]),
        ("a.json", b'{"id": 1, "text": "x"}\n{"id": 2, "text": "y"}\n', [("1", ""), ("2", "")]),
        ("a.json", b'{\n "id": 1,\n "text": "x"\n}', [("1", "")]),
        ("a.json", b'[\n{"id": 1, "text": "x"}\n]', [("1", "")]),
        ("a.jsonl", b'{"docid": 3, "contents": "x", "title": null}\n', [("3", "")]),
        ("a.md", b"---\ntitle: 'Rome'\n---\nA city.", [("a.md#1", "Rome")]),
        ("a.md", b"---\ndate: 1\n---\n# Rome\nA city.", [("a.md#1", "Rome")]),
        ("a.tsv", b'id\ttext\n7\t"' + b"x " * 100_000 + b'"\n', [("7", "")]),  # more than csv's own limit
        ("A b.txt.gz", gzip.compress(b"A city.", mtime=0), [("A b.txt.gz#1", "A b")]),
        ("f/a.tsv", b"id\ttext\n7\tx\n", [("7", "")]),  # a folder of tables
        ("a.tsv", "id\ttext\n7\tx\n".encode("utf-16"), [("7", "")]),  # a byte order mark says so
        ("a.txt", "A city.".encode("utf-32"), [("a.txt#1", "a")]),
        ("a.jsonl", b'{"id": null, "text": "x"}\n', [("1", "")]),  # null is none
        ("a.jsonl", b'{"id": 7.5, "title": 1984, "text": 12}\n', [("7.5", "1984")]),
        ("a.csv", b"id,text\n7,x\n,\n,,\n", [("7", "")]),  # a spreadsheet's empty rows
        ("a.tsv", b'id\ttitle\ttext\n1\ta\t"Stop\n2\tb\tHe said "no"\n', [("1", "a"), ("2", "b")]),
        (
            "a.json",
            b'{"version": 1,\n"data": [{"id": 1, "text": "x"},\n {"id": 2, "text": "y"}]}',
            [("1", ""), ("2", "")],
        ),
        ("a.json", b'{\n "id": 1,\n "text": "x"\n}\n{\n "id": 2,\n "text": "y"\n}\n', [("1", ""), ("2", "")]),
        (
            "a.jsonl",
            b'{"id": "7", "contents": "\\"Rome\\"\\nA city."}',
            [("7", "Rome")],
        ),  # pyserini, FlashRAG
        (
            "a.jsonl",
            b'{"wikipedia_id": "7", "wikipedia_title": "Rome", "text": ["Rome\\n", "A city."]}',
            [("7", "Rome")],
        ),
    ],
)
def test_forms_in_small(tmp_path, name, content, expected):
    path = written(tmp_path / name, content)
    passages = list(read_passages(path.parent if "/" in name else path))
    assert [(p.id, p.title) for p in passages] == expected


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        (
            "a.jsonl",
            b'{"id": 1, "text": "x"}\n{"text": "x"}\n',
            "line 2: no id: give all passages one, or none",
        ),
        ("a.jsonl", b'{"id": "", "text": "x"}\n', "line 1: the id '' is empty"),
        ("a.jsonl", b'{"id": true, "text": "x"}\n', "line 1: id is True"),
        ("a.jsonl", b'{"id": 1e999, "text": "x"}\n', "line 1: id is inf"),
        ("a.json", b'[{"id": 1}]', "line 1: no text"),
        ("a.jsonl", b'{"id": ' + b"1" * 5000 + b', "text": "x"}', "line 1: malformed JSON"),
        ("a.jsonl", b'{"text": "x"}\n' + b"[" * 100_000, "line 2: malformed JSON"),
        ("a.json", b'[{"id": 1, "text": "x"},\n{"id": }]', "line 2: malformed JSON"),
        ("a.tsv", b"PK\x03\x04 and so on", "is an archive: unpack it"),
        ("a.tar", b"x", "is an archive: unpack it"),
        ("f/a.png", b"x", r"found 1 .png \(a.png\); expected"),
        ("a.txt", b"\xef\xbb\xbf", "holds no text"),  # nothing but a byte order mark
        ("a.md", b"\xff\xfe", "holds no text"),
        ("f/.hidden.txt", b"x", r"found 1 hidden \(.hidden.txt\)"),
    ],
)
def test_refusals_in_small(tmp_path, name, content, sentence):
    path = written(tmp_path / name, content)
    with pytest.raises(UserError, match=sentence):
        list(read_passages(path.parent if "/" in name else path))


@pytest.mark.parametrize("encoding", ["utf-16", "latin-1", "cp1252", "utf-32"])
@pytest.mark.parametrize("name", ["a.tsv", "a.jsonl", "a.txt"])
def test_encodings(tmp_path, encoding, name):
    text = "Öffnung um neun."
    content = {
        "a.tsv": f"id\ttext\n1\t{text}\n",
        "a.jsonl": json.dumps({"id": 1, "text": text}, ensure_ascii=False),
        "a.txt": text,
    }
    path = written(tmp_path / name, content[name].encode(encoding))
    assert [p.text for p in read_passages(path, CorpusReading(encoding))] == [text]
    with pytest.raises(UserError, match="corpus.encoding=klingon, which Python does not know"):
        list(read_passages(path, CorpusReading("klingon")))
    with pytest.raises(UserError, match="not ascii .*: give corpus.encoding="):
        list(read_passages(path, CorpusReading("ascii")))


def test_what_is_done_to_a_corpus_is_counted(tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    half = '{"text": "a \\ud83d", "title": "t"}\n{"text": "b", "title": "\\udc00"}\n{"text": "c"}\n'
    passages = list(read_passages(written(tmp_path / "a.jsonl", half.encode())))
    assert [p.text + p.title for p in passages] == ["a \ufffdt", "b\ufffd", "c"]
    assert "becomes U+FFFD in 2 passages" in caplog.text
    assert "passages have no ids, and are numbered from 1" in caplog.text
    list(read_passages(written(tmp_path / "b.tsv", b'id\ttext\n1\t"a" b\n2\t"c\n')))
    assert "enclose no field in 2 rows, first in line 2" in caplog.text


def test_a_store_refuses_half_a_pair_and_another_way_of_reading(tmp_path):
    with pytest.raises(UserError, match="passage '7' holds half a surrogate pair"):
        PassageStore.write([Passage("7", "\ud83d", "x")], tmp_path / "s")
    corpus = written(tmp_path / "a.tsv", b"id\ttext\n1\ta b c\n")
    store = PassageStore.prepare(corpus, tmp_path / "p", reading=TWO_WORDS)
    assert store.ids(range(2)) == ["1#1", "1#2"]
    assert PassageStore.prepare(corpus, tmp_path / "p", reading=TWO_WORDS).sha256 == store.sha256
    with pytest.raises(UserError, match="read with corpus.split=words corpus.size=2, not corpus.split=null"):
        PassageStore.prepare(corpus, tmp_path / "p")
    with pytest.raises(UserError, match="corpus.size=0: give a number of words"):
        CorpusReading(split="words", size=0)

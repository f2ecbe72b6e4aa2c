"""Corpora in the forms people really have: read as they are meant, or refused in one sentence whose advice works."""

import gzip
import json
import logging
from pathlib import Path

import pytest

from rag.errors import UserError
from rag.index.passage import Passage
from rag.index.passages import PassageStore
from rag.index.readers import read_passages

CASES = Path(__file__).parents[2] / "shared/cases"
needs_cases = pytest.mark.skipif(not CASES.exists(), reason="needs ../shared/cases")

SHOP = [
    Passage("1", "Opening hours", "The shop in Cork opens at nine and closes at six."),
    Passage("2", "Returns", "Goods may be returned within thirty days with the receipt."),
    Passage("3", "Delivery", "Delivery takes four days and costs five crowns."),
]
LONG = ("word " * 40_000).strip()
READ: dict[str, list[Passage]] = {
    **dict.fromkeys(
        [
            "01_title_text_noheader.tsv",
            "02_title_text_header.tsv",
            "03_title_text.csv",
            "04_id_title_text.csv",
            "06_array.json",
            "07_array_noid.json",
            "08_noid.jsonl",
            "11_beir.jsonl",
            "15_bom_crlf.tsv",
            "28_extra_cols.tsv",
            "29_noheader_dpr.tsv",
            "50_jsonl_crlf.jsonl",
            "53_trailing_tab.tsv",
        ],
        SHOP,
    ),
    "12_text_only.txt": [Passage("1", "12_text_only", " ".join(p.text for p in SHOP))],
    "13_titlenull.jsonl": [Passage("1", "", SHOP[0].text), Passage("2", "B", SHOP[1].text)],
    "14_emptytitle.tsv": [Passage("1", "", SHOP[0].text), SHOP[1]],
    "16_nul.tsv": [Passage("1", "A", "The sh\0op opens."), Passage("2", "B", "Goods.")],
    "17_quotes_bare.tsv": [
        Passage("1", "A", 'He said "no" and left.'),
        Passage("2", "B", '"Stop" was the answer.'),
        Passage("3", "C", "Third."),
    ],
    "18_quote_first_unclosed.tsv": [
        Passage("1", "B", '"Stop was the answer.'),
        Passage("2", "C", "Third passage."),
        Passage("3", "D", "Fourth."),
    ],
    "19_inch.tsv": [Passage("1", "A", 'A 5" screw.'), Passage("2", "B", 'A 7" screw.')],
    "31_floatid.jsonl": [Passage("1", "A", "x y")],
    "32_uuid.jsonl": [Passage("a-b-1", "A", "x y"), Passage("7f", "A", "x y")],
    "33_squad.json": [Passage("1", "Shop", SHOP[0].text)],
    "34_surrogate.jsonl": [Passage("1", "A", "bad \ufffd half"), Passage("2", "B", "fine")],
    "36_single.tsv": [Passage("1", "A", "only one passage here")],
    "38_multiline_quoted.tsv": [Passage("1", "A", "line one\nline two"), Passage("2", "B", "c d")],
    "42_mixdir": [Passage("1", "a", "The shop opens at nine.")],
    "45.txt": [Passage("1", "45", "One text file, not a folder.")],
    "46.md": [Passage("1", "Title", "Text of a file.")],
    "47_tsv_as_txt.txt": [Passage("1", "A", "a b")],
    "57_emoji_pair_ok.jsonl": [Passage("1", "A", "bike \N{BICYCLE}")],
}
REFUSED = {
    "22_latin1.tsv": "22_latin1.tsv, line 2: not UTF-8 .* corpus.encoding=latin-1",
    "24_dupid.tsv": "line 3: the id '1' occurs twice",
    "25_emptytext.tsv": "line 3: the text of passage '2' is empty",
    "26_nan.jsonl": "line 1: text is nan: expected a string",
    "41_pdfdir": r"nothing to read: found 1 .pdf \(a.pdf\), 1 .docx \(b.docx\); expected",
    "43_latindir": "a.txt, line 1: not UTF-8 .* corpus.encoding=latin-1",
    "48_empty.tsv": "is empty",
    "49_header_only.tsv": "holds no passages",
    "52.tsv.zip": "is an archive: unpack it",
    "56_surr_id.jsonl": "line 1: the id '.ud800' holds half a surrogate pair",
}


@needs_cases
@pytest.mark.parametrize("name", READ)
def test_read_as_it_is_meant(name, tmp_path):
    passages = list(read_passages(CASES / "corpus" / name))
    assert passages == READ[name]
    assert list(PassageStore.prepare(CASES / "corpus" / name, tmp_path / "s")) == passages


@needs_cases
@pytest.mark.parametrize("name", REFUSED)
def test_refused_in_one_sentence(name):
    with pytest.raises(UserError, match=REFUSED[name]) as error:
        list(read_passages(CASES / "corpus" / name))
    assert "\n" not in str(error.value)


@needs_cases
def test_every_other_case_is_read(tmp_path):
    """Whatever is in the folders, also what was not there when this was written: passages or one sentence."""
    for path in [*(CASES / "corpus").iterdir(), *CASES.glob("[!cq]*/*.jsonl"), CASES / "folder"]:
        try:
            store = PassageStore.prepare(path, tmp_path / path.name)
        except UserError as error:
            assert "\n" not in str(error), path
        else:
            assert len(store) > 0


@needs_cases
def test_the_encoding_that_is_advised_works(tmp_path):
    passages = list(read_passages(CASES / "corpus/22_latin1.tsv", encoding="latin-1"))
    assert passages == [Passage("1", "Öffnung", "Der Laden öffnet um neun."), Passage("2", "B", "x y.")]
    passages = list(read_passages(CASES / "corpus/43_latindir", encoding="latin-1"))
    assert [p.text for p in passages] == ["Der Laden öffnet.", "ok then"]


@needs_cases
@pytest.mark.parametrize("name", ["20_long200k.tsv", "21_long200k.jsonl"])
def test_a_long_passage_is_split_where_that_is_asked_for(name, caplog):
    whole = list(read_passages(CASES / "corpus" / name))
    assert len(whole) == 2 and len(whole[0].text.split()) == 40_000
    passages = list(read_passages(CASES / "corpus" / name, words=100))
    assert (
        [p.id for p in passages[:2]] == ["1#1", "1#2"] and len(passages) == 401 and passages[-1] == whole[1]
    )
    assert "1 passage of more than 100 words split into 400 pieces" in caplog.text


@needs_cases
def test_a_folder_of_dirty_texts():
    text_of = {p.title: p.text for p in read_passages(CASES / "folder")}
    assert text_of == {
        "Opening hours": "The shop opens at nine.",
        "crlf": "Line one. Line two.",
        "Delivery": "Delivery takes four days.",  # the front matter is no text
        "nul": "A\0B text",
        "pdfdirt": "The guarantee is valid for five years. Page 2 of 9 final floor office",
    }


# The same kinds, and their neighbours, in small.


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
        ("a.csv", b'"text","id"\r\n"The ""city""\nis old.","7"\r\n', [("7", "")]),
        ("a.csv.gz", gzip.compress(b"id,text\n7,x\n", mtime=0), [("7", "")]),
        ("a.tsv", b"id\ttext\r1\tA city.\r2\tA river.\r", [("1", ""), ("2", "")]),  # an old Mac's line ends
        ("a.tsv", "\ufeffid\ttext\n1\tA city.\n".encode(), [("1", "")]),
        ("a.json", b'{"id": 1, "text": "x"}\n{"id": 2, "text": "y"}\n', [("1", ""), ("2", "")]),
        ("a.json", b'{\n "id": 1,\n "text": "x"\n}', [("1", "")]),
        ("a.json", b'[\n{"id": 1, "text": "x"}\n]', [("1", "")]),
        ("a.jsonl", b'{"docid": 3, "contents": "x", "title": null}\n', [("3", "")]),
        ("a.md", b"---\ntitle: 'Rome'\n---\nA city.", [("1", "Rome")]),
        ("a.md", b"---\ndate: 1\n---\n# Rome\nA city.", [("1", "Rome")]),
        ("a.tsv", b'id\ttext\n7\t"' + b"x " * 100_000 + b'"\n', [("7", "")]),  # more than csv's own limit
        ("A b.txt.gz", gzip.compress(b"A city.", mtime=0), [("1", "A b")]),
        ("f/a.tsv", b"id\ttext\n7\tx\n", [("7", "")]),  # a folder of tables
        ("a.tsv", "id\ttext\n7\tx\n".encode("utf-16"), [("7", "")]),  # a byte order mark says so
        ("a.txt", "A city.".encode("utf-32"), [("1", "a")]),
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
        ("f/a.pdf", b"%PDF", r"found 1 .pdf \(a.pdf\); expected"),
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
    assert [p.text for p in read_passages(path, encoding)] == [text]
    with pytest.raises(UserError, match="corpus.encoding=klingon, which Python does not know"):
        list(read_passages(path, "klingon"))
    with pytest.raises(UserError, match="not ascii .*: give corpus.encoding="):
        list(read_passages(path, "ascii"))


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
    store = PassageStore.prepare(corpus, tmp_path / "p", words=2)
    assert store.ids(range(2)) == ["1#1", "1#2"]
    assert PassageStore.prepare(corpus, tmp_path / "p", words=2).sha256 == store.sha256
    with pytest.raises(
        UserError, match="read with corpus.split_words=2, not null: give corpus.split_words=2"
    ):
        PassageStore.prepare(corpus, tmp_path / "p")
    with pytest.raises(UserError, match="corpus.split_words=0: give the number of words"):
        read_passages(corpus, words=0)

"""Every file of ../shared/cases that is a corpus: what it holds, or the one sentence that says what is wrong.

The files were collected from public reports; a file that is added there without an expectation here fails.
"""

import importlib.util
import json
from pathlib import Path

import pytest

from rag.errors import UserError
from rag.index.documents import read_documents
from rag.index.passage import Passage
from rag.index.passages import PassageStore
from rag.index.readers import read_passages
from rag.index.reading import CorpusReading
from rag.index.update import read_ids

CASES = Path(__file__).parents[2] / "shared/cases"
needs_cases = pytest.mark.skipif(not CASES.exists(), reason="needs ../shared/cases")

EXTRA = all(map(importlib.util.find_spec, ("bs4", "mammoth", "pypdf")))

SHOP = [
    Passage("1", "Opening hours", "The shop in Cork opens at nine and closes at six."),
    Passage("2", "Returns", "Goods may be returned within thirty days with the receipt."),
    Passage("3", "Delivery", "Delivery takes four days and costs five crowns."),
]
LONG = "word " * 40_000
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
    "12_text_only.txt": [Passage("12_text_only.txt#1", "12_text_only", " ".join(p.text for p in SHOP))],
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
    "20_long200k.tsv": [Passage("1", "A", LONG), Passage("2", "B", "short.")],
    "21_long200k.jsonl": [Passage("1", "A", LONG), Passage("2", "B", "short")],
    "23_emoji_cjk.jsonl": [
        Passage("1", "営業時間", "店は九時に開きます。"),
        Passage("2", "\N{GRINNING FACE}", "\N{BICYCLE}\N{BICYCLE} bike"),
        Passage("3", "مرحبا", "المتجر يفتح في التاسعة"),
    ],
    "35_ctrl.tsv": [
        Passage("1", "A", "Page one\fPage two \x1b[31mred\a \x1c \x85 \u2028 next\xad soft\u200b zero."),
        Passage("2", "B", "b c."),
    ],
    "34_surrogate.jsonl": [Passage("1", "A", "bad \ufffd half"), Passage("2", "B", "fine")],
    "36_single.tsv": [Passage("1", "A", "only one passage here")],
    "38_multiline_quoted.tsv": [Passage("1", "A", "line one\nline two"), Passage("2", "B", "c d")],
    "42_mixdir": [
        Passage("a.txt#1", "a", "The shop opens at nine."),
        *([Passage("b.html#1", "b", "Hello")] if EXTRA else []),
        Passage("1", "", "x"),
        Passage("e.csv#1", "a", "b"),
    ],
    "45.txt": [Passage("45.txt#1", "45", "One text file, not a folder.")],
    "46.md": [Passage("46.md#1", "Title", "Text of a file.")],
    "47_tsv_as_txt.txt": [Passage("1", "A", "a b")],
    "57_emoji_pair_ok.jsonl": [Passage("1", "A", "bike \N{BICYCLE}")],
}
REFUSED = {
    "22_latin1.tsv": "22_latin1.tsv, line 2: not UTF-8 .* corpus.encoding=latin-1",
    "24_dupid.tsv": "line 3: the id '1' occurs twice",
    "25_emptytext.tsv": "line 3: the text of passage '2' is empty",
    "26_nan.jsonl": "line 1: text is nan: expected a string",
    "41_pdfdir": r"holds no text that can be read: \S*a.pdf cannot be read as .pdf \(.*\): save it again"
    if EXTRA
    else r"nothing to read: found 1 .pdf \(a.pdf\), 1 .docx \(b.docx\) \(.docx, .pdf are read after python -m pip",
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
def test_every_file_has_an_expectation():
    assert {path.name for path in (CASES / "corpus").iterdir()} == {*READ, *REFUSED}


@needs_cases
def test_what_is_left_out_of_a_mixture_is_named(caplog):
    assert list(read_passages(CASES / "corpus/42_mixdir")) == READ["42_mixdir"]
    if EXTRA:
        assert "c.pdf cannot be read as .pdf" in caplog.text
    else:
        assert "2 files left out: 1 .html (b.html), 1 .pdf (c.pdf) (.html, .pdf are read after" in caplog.text


@needs_cases
def test_the_encoding_that_is_advised_works(tmp_path):
    passages = list(read_passages(CASES / "corpus/22_latin1.tsv", CorpusReading("latin-1")))
    assert passages == [Passage("1", "Öffnung", "Der Laden öffnet um neun."), Passage("2", "B", "x y.")]
    passages = list(read_passages(CASES / "corpus/43_latindir", CorpusReading("latin-1")))
    assert [p.text for p in passages] == ["Der Laden öffnet.", "ok then"]


@needs_cases
@pytest.mark.parametrize("name", ["20_long200k.tsv", "21_long200k.jsonl"])
def test_a_long_passage_is_split_where_that_is_asked_for(name, caplog):
    whole = list(read_passages(CASES / "corpus" / name))
    assert len(whole) == 2 and len(whole[0].text.split()) == 40_000
    passages = list(read_passages(CASES / "corpus" / name, CorpusReading(split="words")))
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


@needs_cases
def test_the_same_folder_by_headings(caplog):
    found = [(p.id, p.title, p.text) for p in read_documents(CASES / "folder")]
    assert found == [
        ("bom.md#1", "Opening hours", "The shop opens at nine."),
        ("crlf.txt#1", "crlf", "Line one. Line two."),
        ("frontmatter.md#1", "Delivery", "Delivery takes four days."),
        ("nul.txt#1", "nul", "A\0B text"),
        ("pdfdirt.txt#1", "pdfdirt", "The guarantee is valid for five years. Page 2 of 9 final floor office"),
    ]
    assert "1 file without text: empty.txt" in caplog.text
    assert "1 file left out: 1 hidden (.hidden.txt)" in caplog.text


@needs_cases
def test_the_files_of_an_update():
    assert read_ids(CASES / "upd/ids_bom.txt") == ["1", "2"]
    assert list(read_passages(CASES / "upd/more.tsv")) == [Passage("21", "New", "New text here.")]
    added = list(read_passages(CASES / "upd/more_noid.tsv", first_id=21))
    assert added == [Passage("21", "A", "New text here.")]


@needs_cases
def test_a_chinese_knowledge_base_is_read_and_split():
    lines = [json.loads(line) for line in (CASES / "zh/p.jsonl").read_text("utf-8").splitlines()]
    whole = list(read_passages(CASES / "zh/p.jsonl"))
    assert whole == [Passage(each["id"], each["title"], each["text"]) for each in lines] and len(whole) == 20
    for split in ("words", "sentences", "headings"):
        pieces = list(read_passages(CASES / "zh/p.jsonl", CorpusReading(split=split, size=15)))
        assert "".join(p.text for p in pieces) == "".join(p.text for p in whole)
        assert max(len(p.text) for p in pieces) <= 2 * 15 + 4 and len(pieces) > 30  # and punctuation
    by_sentences = read_passages(CASES / "zh/p.jsonl", CorpusReading(split="sentences", size=15))
    assert all(p.text.endswith("。") for p in by_sentences)


@needs_cases
def test_the_answer_after_word_330_is_read_where_that_is_asked_for():
    for split in ("words", "sentences"):
        pieces = list(read_passages(CASES / "longp/p.jsonl", CorpusReading(split=split)))
        assert [p.id for p in pieces if "Wilma Krantz" in p.text] == ["1#4"]
    assert [len(p.text.split()) for p in read_passages(CASES / "longp/p.jsonl")][0] == 335

"""HTML, PDF and Word documents: what is read of them, and what is said of those that cannot be."""

import importlib.util
from pathlib import Path

import pytest
from rich_files import write_docx, write_pdf

from rag.errors import UserError
from rag.index import corpus_files, rich_text
from rag.index.documents import read_documents
from rag.index.readers import read_passages
from rag.index.reading import CorpusReading

pytestmark = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("bs4", "mammoth", "pypdf"))),
    reason=f"needs the extra documents: {rich_text.INSTALL}",
)

PAGE = """<!DOCTYPE html><html><head><title>Algeria - Some Site</title><style>p {}</style></head><body>
<nav><a href="/">Home</a></nav><h1>Algeria</h1><p>It is <b>la</b>rge.<br>Very<!-- not so -->.</p>
<h2>Govern&shy;ment</h2><ul><li>Capital: Algiers<li>Currency: dinar</ul>
<table><tr><th>Year</th><th>People</th></tr><tr><td>2020</td><td>43 million</td></tr></table>
<pre># no heading</pre><h2>Land</h2>Sand &amp; stone.<script>alert("x")</script></body></html>"""


BY_HEADINGS = CorpusReading(split="headings")


def found(path: Path, reading: CorpusReading = BY_HEADINGS) -> list[tuple[str, str]]:
    return [(p.title, p.text) for p in read_passages(path, reading)]


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


# -- HTML ------------------------------------------------------------------------------------------


def test_a_page_by_its_headings(tmp_path):
    assert found(write(tmp_path / "a.html", PAGE)) == [
        ("Algeria", "It is large. Very."),
        (
            "Algeria – Govern\xadment",
            "Capital: Algiers\nCurrency: dinar\nYear | People\n2020 | 43 million\n# no heading",
        ),
        ("Algeria – Land", "Sand & stone."),
    ]
    (passage,) = read_passages(tmp_path / "a.html")  # by words, as usual
    assert (passage.id, passage.title) == ("a.html#1", "Algeria")
    assert passage.text.startswith("It is large. Very. Govern\xadment Capital: Algiers")


def test_the_title_of_a_page(tmp_path):
    assert found(write(tmp_path / "a.html", "<title> The\nNile </title><p>A river.")) == [
        ("The Nile", "A river.")
    ]
    two = "<title>Both</title><h2>One</h2>a<h2>Two</h2>b"
    assert found(write(tmp_path / "a.htm", two)) == [("Both – One", "a"), ("Both – Two", "b")]
    assert found(write(tmp_path / "the_nile.xhtml", "<p>A river.")) == [("the nile", "A river.")]


def test_the_encoding_of_a_page(tmp_path):
    said = '<meta charset="iso-8859-1"><p>Größe'.encode("latin-1")
    assert found(write(tmp_path / "a.html", said)) == [("a", "Größe")]
    assert found(write(tmp_path / "b.html", "<p>Größe 猫")) == [("b", "Größe 猫")]
    unsaid = "<p>Größe".encode("cp850")
    assert found(write(tmp_path / "c.html", unsaid), CorpusReading("cp850", "headings")) == [("c", "Größe")]


@pytest.mark.parametrize(
    "content",
    [
        "<div>" * 3_000 + "text",
        "<table>" * 500 + "text",
        "<p>text" + "<b" * 3_000,
        "text <![CDATA[ x",
        "text &#xD800; &#99999999999999;",
        "<!-- text",
        "<?xml version='1.0'?><html xmlns='http://www.w3.org/1999/xhtml'><p>text</p></html>",
        "https://example.org/a.html",
        "\0<p>text\0",
    ],
)
def test_pages_that_nobody_wrote(tmp_path, content):
    try:
        passages = list(read_passages(write(tmp_path / "a.html", content)))
    except UserError as error:
        assert "\n" not in str(error)
    else:
        "".join(p.text for p in passages).encode()


# -- Word ------------------------------------------------------------------------------------------


def test_a_word_document_by_its_styles(tmp_path):
    path = write_docx(
        tmp_path / "hours.docx",
        ("Title", "The shop"),
        ("", "It is in Cork & open."),
        ("heading 1", "Opening hours"),
        ("", "From nine."),
        ("heading 2", "Holidays"),
        ("", "Closed."),
        ("heading 1", "Returns"),
        ("", "Thirty days."),
    )
    assert found(path) == [
        ("The shop", "It is in Cork & open."),
        ("The shop – Opening hours", "From nine."),
        ("The shop – Opening hours – Holidays", "Closed."),
        ("The shop – Returns", "Thirty days."),
    ]
    assert found(write_docx(tmp_path / "b.docx", ("", "One."), ("", "Two."))) == [("b", "One.\nTwo.")]


def test_word_documents_that_are_none(tmp_path):
    whole = write_docx(tmp_path / "a.docx", ("", "text")).read_bytes()
    for name, content, sentence in [
        ("b.docx", b"", "b.docx cannot be read as .docx"),
        ("c.docx", whole[: len(whole) // 2], "c.docx cannot be read as .docx"),
        ("d.docx", b"PK\x03\x04" + b"x" * 100, "d.docx cannot be read as .docx"),
    ]:
        with pytest.raises(UserError, match=sentence):
            found(write(tmp_path / name, content))
    import zipfile

    with zipfile.ZipFile(tmp_path / "e.docx", "w") as archive:
        archive.writestr("text.txt", "x")
    with pytest.raises(UserError, match="e.docx is no Word document: it has no word/document.xml"):
        found(tmp_path / "e.docx")


def test_what_unpacks_to_too_much(tmp_path, monkeypatch):
    monkeypatch.setattr(rich_text, "LARGEST", 1 << 20)
    bomb = write_docx(tmp_path / "a.docx", ("", "text"), extra={"word/comments.xml": b" " * (2 << 20)})
    assert bomb.stat().st_size < 10_000
    with pytest.raises(UserError, match="a.docx unpacks to more than 1 MB: save its text as .txt"):
        found(bomb)
    pictures = write_docx(tmp_path / "b.docx", ("", "text"), extra={"word/media/1.png": b" " * (2 << 20)})
    assert found(pictures) == [("b", "text")]
    with pytest.raises(UserError, match="c.html is larger than 1 MB: split it"):
        found(write(tmp_path / "c.html", "x" * (1 << 20) + "y"))


# -- PDF -------------------------------------------------------------------------------------------


def test_pages_of_a_pdf_are_one_text(tmp_path):
    path = write_pdf(tmp_path / "the_terms.pdf", ["The guaran-", "tee is valid"], ["for five years."])
    assert found(path) == [("the terms", "The guarantee is valid for five years.")]
    with pytest.raises(UserError, match="blank.pdf holds no text"):
        found(write_pdf(tmp_path / "blank.pdf", []))


def test_an_encrypted_pdf(tmp_path):
    from pypdf import PdfReader, PdfWriter

    for password, name in (("secret", "locked.pdf"), ("", "open.pdf")):
        writer = PdfWriter()
        writer.append(PdfReader(write_pdf(tmp_path / "a.pdf", ["A text."])))
        writer.encrypt(password, "owner", algorithm="RC4-128")
        writer.write(tmp_path / name)
    with pytest.raises(UserError, match="locked.pdf is encrypted with a password: save it without one"):
        found(tmp_path / "locked.pdf")
    assert found(tmp_path / "open.pdf") == [("open", "A text.")]


@pytest.mark.parametrize("content", [b"", b"%PDF-1.4", b"%PDF-1.4\n" + bytes(range(256)) * 20, b"x" * 5_000])
def test_pdfs_that_are_none(tmp_path, content):
    with pytest.raises(
        UserError, match=r"a.pdf cannot be read as .pdf \(.*\): save it again, or its text as .txt"
    ):
        found(write(tmp_path / "a.pdf", content))


# -- folders ---------------------------------------------------------------------------------------


@pytest.fixture
def mixture(tmp_path) -> Path:
    folder = tmp_path / "docs"
    write(folder / "a.txt", "Plain text.")
    write(folder / "b.html", "<p>A page.")
    write(folder / "broken.pdf", "%PDF-1.4")
    write(folder / "sub" / "rows.csv", "title,text\nA,one\nB,two\n")
    write(folder / "settings.json", '{"colour": "red"}')
    write(folder / "picture.png", "x")
    write_docx(folder / "c.docx", ("", "A letter."))
    write_pdf(folder / "sub" / "d.pdf", ["A report."])
    return folder


def test_a_folder_of_everything(mixture, caplog):
    assert [(p.id, p.text) for p in read_documents(mixture)] == [
        ("a.txt#1", "Plain text."),
        ("b.html#1", "A page."),
        ("c.docx#1", "A letter."),
        ("sub/d.pdf#1", "A report."),
        ("sub/rows.csv#1", "one"),
        ("sub/rows.csv#2", "two"),
    ]
    assert "1 file left out: 1 .png (picture.png)" in caplog.text
    assert "2 unreadable files left out: " in caplog.text
    assert (
        "broken.pdf cannot be read as .pdf" in caplog.text and "settings.json, line 1: no text" in caplog.text
    )


def test_text_in_another_encoding_is_not_passed_over(mixture):
    (mixture / "a.txt").write_bytes("Größe".encode("latin-1"))
    with pytest.raises(UserError, match="a.txt, line 1: not UTF-8 .* corpus.encoding=latin-1"):
        list(read_documents(mixture))
    write(mixture / "a.txt", "Plain text.")
    (mixture / "sub" / "rows.csv").write_bytes("title,text\nA,Größe\n".encode("latin-1"))
    with pytest.raises(UserError, match="rows.csv, line 2: not UTF-8 .* corpus.encoding=latin-1"):
        list(read_documents(mixture))


def test_a_table_beside_documents_that_breaks_off_is_refused(mixture):
    write(mixture / "sub" / "rows.csv", "title,text\nA,one\nB\n")
    with pytest.raises(UserError, match="rows.csv, line 3: 1 columns where the header has 2"):
        list(read_documents(mixture))


def test_without_the_extra_they_are_named_with_what_installs_it(mixture, monkeypatch, caplog):
    monkeypatch.setattr(corpus_files, "lacks", lambda file: True)
    monkeypatch.setattr(rich_text, "lacks", lambda file: True)
    ids = [p.id for p in read_documents(mixture)]
    assert ids == ["a.txt#1", "sub/rows.csv#1", "sub/rows.csv#2"]
    assert "2 .pdf (broken.pdf, …), 1 .html (b.html), 1 .docx (c.docx), 1 .png (picture.png)" in caplog.text
    assert '(.docx, .html, .pdf are read after python -m pip install -e ".[documents]"' in caplog.text
    with pytest.raises(
        UserError, match="b.html: .html files are read with the extra documents, which is not"
    ):
        list(read_documents(mixture / "b.html"))
    for name in ("a.txt", "sub/rows.csv", "settings.json"):
        (mixture / name).unlink()
    with pytest.raises(
        UserError, match="nothing to read: found 2 .pdf .* are read after python -m pip install"
    ):
        list(read_documents(mixture))

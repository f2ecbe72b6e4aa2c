"""Small files in the forms people have, which the fuzzer changes; ../shared/cases, where it is, is a part of them."""

import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa

CASES = Path(__file__).resolve().parents[3] / "shared" / "cases"
LARGEST_SEED = 5_000  # bytes

_ROWS = [
    ("1", "Opening hours", "The shop in Cork opens at nine."),
    ("2", "Größe", 'A 5" screw, "new"; 猫 and 🚲.'),
]
_QUESTION = {"question": "who sells the milk can?", "answers": ["Pia Roth", "P. Roth"], "positive_ids": ["1"]}
_OBJECTS = [{"id": id, "title": title, "text": text} for id, title, text in _ROWS]
_SQUAD_QUESTION = {"id": "q1", "question": "when?", "answers": [{"text": "nine", "answer_start": 4}]}
_SQUAD = {"data": [{"title": "Shop", "paragraphs": [{"context": _ROWS[0][2], "qas": [_SQUAD_QUESTION]}]}]}
_CONTEXT = {"title": "T", "text": "Pia Roth sells it.", "passage_id": "7"}
_DPR = _QUESTION | {
    "positive_ctxs": [_CONTEXT],
    "negative_ctxs": [],
    "hard_negative_ctxs": [_CONTEXT | {"text": "x"}],
}


def _lines(*records: dict) -> str:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def _table(separator: str, *rows: Sequence[str]) -> str:
    return "".join(separator.join(row) + "\n" for row in rows)


CORPORA = {
    "p.jsonl": _lines(*_OBJECTS),
    "p.json": json.dumps(_OBJECTS, indent=1),
    "squad.json": json.dumps(_SQUAD),
    "p.tsv": _table("\t", ("id", "text", "title"), *_ROWS),
    "plain.tsv": _table("\t", *_ROWS),
    "p.csv": '\ufeff"id","title","text"\r\n"1","a ""b""","c\nd, e"\r\n2,f,g\r\n',
    "semicolons.csv": _table(";", ("text", "id"), ("a, b", "1"), ("c", "2")),
    "kilt.jsonl": _lines(
        {"_id": "1", "wikipedia_title": "T", "text": ["T\n", "A paragraph.\n", "BULLET::::- x"]}
    ),
    "pyserini.jsonl": _lines({"id": "1", "contents": '"T"\nA text.'}),
    "atlas.jsonl": _lines({"id": "1", "title": "T", "section": "S", "text": "A text."}),
    "collection.tsv": _table("\t", ("0", _ROWS[0][2]), ("1", _ROWS[1][2])),
}
TEXTS = {
    "a.md": "---\ntitle: 'Shop'\n---\n# Shop\n\nOpens **at nine**. See [it](http://x).\n\n## Returns\n\n```\n# no\n```",
    "a.txt": "The guaran-\ntee is valid.\n\nSecond ﬁeld. 猫が好き。\n",
}
QUESTIONS = {
    "q.jsonl": _lines(_QUESTION, {"question": "what?", "answer": 7}),
    "q.json": json.dumps([_QUESTION, _QUESTION]),
    "squad.json": json.dumps(_SQUAD, indent=2),
    "mrqa.jsonl": _lines(
        {"header": {}}, {"context": "c", "qas": [{"qid": "1", "question": "q", "answers": ["a"]}]}
    ),
    "trivia.json": json.dumps(
        {
            "Data": [
                {
                    "Question": "who sells the can?",
                    "QuestionId": "1",
                    "Answer": {"Value": "a", "Aliases": ["b"]},
                }
            ]
        }
    ),
    "kilt.jsonl": _lines({"id": "1", "input": "q", "output": [{"answer": "a"}, {"provenance": []}]}),
    "dpr.json": json.dumps([_DPR], indent=4),
    "q.csv": "question,answers\nwho?,\"['a', 'b']\"\nwhat?,a|b\n",
    "q.qa.csv": 'who?\t[\'a\', "b"]\nwhat?\t["c"]\n',
    "q.tsv": "who?\ta\nwhat?\tb\n",
    "q.source": "who?\nwhat?\n",
    "q.target": "a\nb\n",
    "text.jsonl": _lines(
        {"input": "who sells the milk can in Parma?", "target": ["it is Pia Roth who sells it"]}
    ),
    "fever.jsonl": _lines(
        {
            "id": 1,
            "claim": "the shop in Cork opens at nine",
            "label": "SUPPORTS",
            "evidence": [[[1, 2, "Page", 0]]],
        }
    ),
    "trec.jsonl": _lines({"question": "q", "answer": ["Jan(uary)? \\d+"]}),
    "web.json": json.dumps(
        [{"utterance": "who painted like that?", "targetValue": "(list (description Fauvism))"}]
    ),
    "marco.json": json.dumps(
        {"query": {"0": "who sells the milk can?"}, "query_id": {"0": 1}, "wellFormedAnswers": {"0": ["a"]}}
    ),
    "jeopardy.jsonl": _lines({"answer": "'a'", "clue": "It\\'s <i>a</i> &amp; b"}),
    "dialogue.jsonl": _lines({"history": ["when does it open?", "at nine"], "reply": "thank you very much"}),
}


def _pdf() -> bytes:
    """A page of one line; readers find its objects without a table of them."""
    content = "BT /F1 12 Tf 72 700 Td (The shop opens at nine.) Tj ET"
    font = "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>"
    objects = (
        "<< /Type /Catalog /Pages 2 0 R >>",
        "<< /Type /Pages /Count 1 /Kids [3 0 R] >>",
        f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents 4 0 R "
        f"/Resources << /Font << /F1 {font} >> >> >>",
        f"<< /Length {len(content)} >>\nstream\n{content}\nendstream",
    )
    body = "".join(f"{number} 0 obj\n{each}\nendobj\n" for number, each in enumerate(objects, start=1))
    return f"%PDF-1.4\n{body}trailer << /Size 5 /Root 1 0 R >>\nstartxref\n0\n%%EOF\n".encode()


def _word() -> bytes:
    name = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'
    text = "<w:p><w:r><w:t>The shop opens at nine.</w:t></w:r></w:p>"
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_STORED) as archive:  # so that a change reaches its XML
        archive.writestr("word/document.xml", f"<w:document {name}><w:body>{text}</w:body></w:document>")
    return made.getvalue()


PAGE = (
    "<!DOCTYPE html><html><head><title>Shop &amp; more</title></head><body><h1>Shop</h1><p>Opens <b>at</b> nine.<br>"
    "<ul><li>a<li>b</ul><table><tr><td>1<td>2</table><h2>Returns</h2><!-- no --><pre># no</pre><script>x</script>"
)
RICH = {"a.html": PAGE.encode(), "a.pdf": _pdf(), "a.docx": _word()}


def saved() -> dict[str, bytes]:
    """The files of a folder that `datasets` saved."""
    table = pa.table({name: [row[at] for row in _ROWS] for at, name in enumerate(("id", "title", "text"))})
    made = pa.BufferOutputStream()
    with pa.ipc.new_stream(made, table.schema) as writer:
        writer.write_table(table)
    return {
        "data-00000-of-00001.arrow": made.getvalue().to_pybytes(),
        "state.json": b'{"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}',
        "dataset_info.json": b"{}",
    }


def seeds_of(own: Mapping[str, str | bytes], folder: str | None) -> list[tuple[str, bytes]]:
    """A reader's own seeds, and the small files of ../shared/cases."""
    place = CASES / folder if folder else None
    there = sorted(file for file in place.rglob("*") if file.is_file()) if place and place.is_dir() else []
    small = [(file.name, file.read_bytes()) for file in there if file.stat().st_size <= LARGEST_SEED]
    mine = [(name, each.encode() if isinstance(each, str) else each) for name, each in own.items()]
    return [*mine, *small]

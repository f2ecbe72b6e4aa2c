"""Countries as Markdown and the hot-swap of leaders, on a few lines written for it; the real ones where they are."""

import gzip
import json
import lzma
from pathlib import Path

import pytest
from reader_folders import tiny_reader
from sentence_folders import tiny_transformer, write_modules

from benchmarks import world_leaders
from rag.generators.pretrained import FOLDER
from rag.index.documents import read_documents
from rag.index.readers import read_passages
from rag.metrics.record import swap_cells
from rag.runs import PROJECT

DATA = PROJECT.parent / "shared" / "data" / "world_leaders"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two editions: a country's capital stays, its president changes."""
    for name, president in zip(world_leaders.EDITIONS.values(), ("Ada QUILL", 'Bo "B" MARSH'), strict=True):
        rows = [
            ("1", "Geography. Land boundaries: Libya 1050 km.", "Chad"),
            ("2", "Government. Capital: name: N'Djamena.", "Chad"),
            ("3", f"Government. Executive branch: chief of state: President {president}.", "Chad"),
            ("4", "Government. Capital: name: Nowhere.", "Atlantis"),
        ]
        lines = ["id\ttext\ttitle", *('{}\t"{}"\t{}'.format(i, t.replace('"', '""'), c) for i, t, c in rows)]
        (tmp_path / name).write_bytes(lzma.compress("\n".join(lines).encode()))
    record = {"question": "who is the president of Chad", "changed": True}
    answers = {"answers_2016": ["Ada Quill", "Quill"], "answers_2021": ["Bo Marsh", "Marsh"]}
    leaders = [record | answers, record | answers | {"changed": False}]
    (tmp_path / world_leaders.LEADERS).write_bytes(
        gzip.compress("\n".join(map(json.dumps, leaders)).encode())
    )
    return tmp_path


def test_a_country_is_a_file_with_its_sections(data, tmp_path):
    world_leaders.write_countries(data, tmp_path / "countries")
    assert [file.name for file in (tmp_path / "countries").iterdir()] == ["chad.md"]
    assert [(p.title, p.text) for p in read_documents(tmp_path / "countries")] == [
        ("Chad – Geography", "Land boundaries: Libya 1050 km."),
        (
            "Chad – Government",
            'Capital: name: N\'Djamena.\nExecutive branch: chief of state: President Bo "B" MARSH.',
        ),
    ]


def test_the_section_on_government_is_a_corpus(data, tmp_path):
    file = world_leaders.on_government(data / world_leaders.EDITIONS["2021"], tmp_path / "2021.tsv")
    assert [(p.id, p.title) for p in read_passages(file)] == [("2", "Chad"), ("3", "Chad"), ("4", "Atlantis")]
    assert list(read_passages(file))[1].text.endswith('President Bo "B" MARSH.')


def test_both_editions_are_asked_with_the_answers_of_both(data, tmp_path, capsys):
    encoder = write_modules(tiny_transformer(tmp_path / "encoder"), max_length=40)
    given = str(tiny_reader(tmp_path)), [f"passage_encoder={encoder}", "n_docs=2"]
    every, changed = world_leaders.swap_editions(data, tmp_path / "swap", *given)
    world_leaders.show_swap([*every, *changed])
    shown = capsys.readouterr().out
    assert "EM, all questions" in shown and "EM, changed questions" in shown
    for records, count in ((every, 2), (changed, 1)):
        cells = swap_cells(records)
        assert {(a, i): cell.n for a, row in cells.items() for i, cell in row.items()} == {
            (a, i): count for a in world_leaders.EDITIONS for i in world_leaders.EDITIONS
        }


@pytest.mark.slow
@pytest.mark.skipif(not DATA.is_dir(), reason=f"no real data at {DATA}")
@pytest.mark.skipif(not FOLDER.is_dir(), reason=f"no reader at {FOLDER}")
def test_half_of_the_questions_about_real_countries_are_answered(tmp_path):
    found = world_leaders.ask_documents(DATA, tmp_path / "countries", None, [])
    asked = [row for row in found["rows"] if row["kind"] != "none"]
    assert len(asked) == 30 and sum(row["right"] for row in asked) >= 15

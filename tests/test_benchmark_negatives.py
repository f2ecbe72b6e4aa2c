"""The comparison of negatives, in small."""

import pytest
from fitting import QUIET

from benchmarks.negatives import main
from rag.miniwiki import write_world

pytestmark = QUIET


@pytest.mark.slow
def test_each_kind_of_negatives_gets_a_row_for_each_seed(tmp_path, capsys):
    write_world(tmp_path / "data" / "miniwiki", seed=1, people=120, institutions=40)
    main(
        [
            "miniwiki",
            "--data",
            str(tmp_path / "data"),
            "--outputs",
            str(tmp_path / "out"),
            "--steps",
            "4",
            "--seeds",
            "1",
        ]
    )
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| 1 |")]
    assert [row[1] for row in rows] == [
        "none: the start",
        "in-batch",
        "BM25",
        "re-mined beside BM25",
        "re-mined alone",
    ]
    assert all(0 <= float(cell) <= 1 for row in rows for cell in row[2:5])
    assert [bool(row[6].strip(" |")) for row in rows] == [False, False, False, True, True]


def test_text_needs_a_folder(capsys):
    for command in (["text"], ["miniwiki", "somewhere"]):
        with pytest.raises(SystemExit):
            main(command)
        assert "text needs a folder, and miniwiki none" in capsys.readouterr().err

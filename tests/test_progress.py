"""Progress where nobody looks: lines in a log, their numbers worked out by hand against a clock that is turned."""

import io
import json
import re

import pytest

from rag import progress
from rag.progress import progress_bar, rate, span


class Clock:
    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def test_a_log_gets_lines_more_and_more_rarely(clock, capsys):
    with progress_bar("embedding", 1000, "passages") as advance:
        for _ in range(9):  # 100 passages in 5 seconds: 20 a second
            clock.now += 5
            advance(100)
        clock.now += 5
        advance(100)
    assert capsys.readouterr().err.splitlines() == [
        "embedding: 200 of 1,000 passages, 20 passages/s, 40 s to go",  # after 10 s
        "embedding: 600 of 1,000 passages, 20 passages/s, 20 s to go",  # after 20 s more
        "embedding: 1,000 passages in 50 s, 20 passages/s",
    ]


def test_what_an_earlier_run_did_is_no_speed(clock, capsys):
    with progress_bar("training", 500, "steps", done=400) as advance:
        clock.now += 20
        advance(10)
    assert capsys.readouterr().err.splitlines() == [
        "training: 410 of 500 steps, 2.0 s/step, 3 min 0 s to go",
        "training: 410 steps in 20 s, 2.0 s/step",
    ]


def test_quick_work_leaves_nothing_in_a_log(clock, capsys):
    with progress_bar("reading", None, "passages") as advance:
        clock.now += 9
        advance(5)
    assert capsys.readouterr().err == ""


def test_what_interrupts_something_else_is_told_however_short(clock, capsys):
    with progress_bar("training", 4, "steps") as advance:
        with progress_bar(
            "index after step 3", 20, "passages", told="embedding its 20 passages again"
        ) as embedded:
            clock.now += 4
            embedded(20)
        advance(4)
        with progress_bar(
            "index after step 4", 20, "passages", show=False, told="embedding again"
        ) as embedded:
            embedded(20)
    assert capsys.readouterr().err.splitlines() == [
        "index after step 3: embedding its 20 passages again",
        "index after step 3: 20 passages in 4 s, 5.0 passages/s",
    ]


def test_on_a_terminal_its_bar_stands_below_the_others(monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    with progress_bar("training", 4, "steps") as advance:
        advance(1)
        with progress_bar("index", 20, "passages", told="embedding its 20 passages again") as embedded:
            embedded(5)
            shown = progress._around.get()
            shown.refresh()
            assert [task.description for task in shown.tasks] == ["training", "index"]
        assert [task.description for task in shown.tasks] == ["training"]
        advance(3)
    assert progress._around.get() is None
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.getvalue())
    assert "index: embedding its 20 passages again\n" in text and "index: 5 passages in 0 s" in text
    assert re.search(r"training\s.*1/4.*\n.*index\s.*5/20", text) and re.search(r"training\s.*4/4", text)
    assert "passages/s" in text and "steps/s" in text


def test_an_unknown_total(clock, capsys):
    with progress_bar("reading", None, "passages") as advance:
        clock.now += 10
        advance(5)
    assert capsys.readouterr().err.splitlines()[0] == "reading: 5 passages, 2.0 s/passage"


def test_whoever_asks_is_told_in_a_file(clock, tmp_path, monkeypatch):
    monkeypatch.setenv(progress.REPORT_FILE, str(tmp_path / "state"))
    with progress_bar("training", 4, "steps", show=False) as advance:
        advance(1)
        assert json.loads((tmp_path / "state").read_text()) == {"what": "training", "done": 1, "total": 4}
        advance(1)  # too soon after the first
        assert json.loads((tmp_path / "state").read_text())["done"] == 1
        advance(2)
        assert json.loads((tmp_path / "state").read_text())["done"] == 4


def test_rates_and_spans():
    assert [rate(s, "steps") for s in (0.0, 0.25, 2.5, 1234.5)] == [
        "– steps/s",
        "4.0 s/step",
        "2.5 steps/s",
        "1,234 steps/s",
    ]
    assert [span(s) for s in (0.4, 59.6, 200, 7500)] == ["0 s", "1 min 0 s", "3 min 20 s", "2 h 5 min"]

"""The comparison of the retriever's losses: its table by hand, and on a finished demo that it runs."""

import os
import re
from pathlib import Path

import numpy as np
import pytest

from benchmarks import losses
from benchmarks.losses import MARGINAL, START, Row
from rag.errors import UserError
from rag.runs import PROJECT


def row(loss: str, recall: list[list[int]], exact: list[list[int]]) -> Row:
    return Row(loss, {"recall@1": np.array(recall, float), "EM": np.array(exact, float)})


def test_means_over_seeds_and_differences_over_the_same_questions():
    """Two seeds, four questions."""
    text = losses.table(
        [
            row(START, [[1, 0, 0, 0]], [[0, 0, 0, 0]]),
            row(MARGINAL, [[1, 1, 0, 0], [1, 0, 0, 0]], [[1, 1, 1, 1], [1, 1, 1, 1]]),
            row("pdist", [[1, 1, 1, 0], [1, 1, 1, 0]], [[1, 1, 1, 1], [0, 0, 0, 0]]),
        ]
    )
    before, marginal, pdist = [line.split(" | ") for line in text.splitlines()[2:]]
    assert before[0] == "| before" and before[1].startswith(".250 [") and before[2] == ".250"
    assert before[3] == marginal[3] == ""  # nothing is compared with itself, or with another number of runs
    assert marginal[1].startswith(".375 [") and marginal[2] == ".500 / .250"
    assert marginal[4] == "1.000 [1.000, 1.000]"
    assert pdist[2] == ".750 / .750" and pdist[3].startswith("+.375 [")
    # of every question alike: the seeds' mean is what questions are drawn of
    assert pdist[4:6] == [".500 [.500, .500]", "1.000 / .000"]
    assert pdist[6] == "−.500 [−.500, −.500] |"


def test_evaluations_of_different_questions_are_refused():
    with pytest.raises(UserError, match="different numbers of questions"):
        losses.table([row("pdist", [[1, 0]], [[1, 0]]), row("loop", [[1, 0, 1]], [[1, 0, 1]])])


def test_without_a_demo_one_sentence_says_so(tmp_path, capsys):
    with pytest.raises(SystemExit):
        losses.main(["--demo", str(tmp_path)])
    assert f"{tmp_path} holds no finished demo: run python -m rag.demo" in capsys.readouterr().err


@pytest.mark.slow
def test_it_runs_on_a_finished_demo(tmp_path, capsys):
    demo = PROJECT / os.environ.get("RAG_DEMO", "outputs/demo")
    data = Path(os.environ.get("RAG_DEMO_DATA", PROJECT / "data"))
    if not (demo / "warmup" / "model").is_dir() or not (data / "miniwiki").is_dir():
        pytest.skip(f"{demo} holds no finished demo, or {data} not its mini-wiki: make demo")
    given = ["--demo", str(demo), "--data", str(data), "--outputs", str(tmp_path)]
    given += ["--steps", "2", "--seeds", "1", "--losses", "marginal", "adist"]
    losses.main(given)
    text = (tmp_path / "losses-2.md").read_text()
    assert text in capsys.readouterr().out
    assert [line.split(" | ")[0] for line in text.splitlines()[2:]] == ["| before", "| marginal", "| adist"]
    losses.main(given)  # nothing is trained again
    assert not re.search("training demo", capsys.readouterr().out)
    assert (tmp_path / "losses-2.md").read_text() == text

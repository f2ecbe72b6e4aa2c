"""Two systems over the same questions: paired tests against values worked out by hand, and the command."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf

from rag.compare import main
from rag.errors import UserError
from rag.files import write_json
from rag.metrics.bootstrap import mean_with_interval
from rag.metrics.generation import bleu_1
from rag.metrics.paired import difference, is_right_or_wrong, mcnemar
from rag.runs import PROJECT

# -- the mathematics -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gained", "lost", "p"),
    [
        (0, 0, 1.0),
        (1, 0, 1.0),  # 2 · 1/2
        (3, 0, 2 / 8),
        (0, 3, 2 / 8),
        (5, 1, 2 * (1 + 6) / 64),
        (10, 2, 2 * (1 + 12 + 66) / 4096),
        (4, 4, 1.0),  # 2 · 163/256 is more than 1
    ],
)
def test_mcnemar_by_hand(gained, lost, p):
    assert mcnemar(gained, lost) == pytest.approx(p, abs=1e-15)


def test_mcnemar_of_thousands_of_questions_neither_overflows_nor_vanishes():
    """Against the normal approximation with continuity correction, which is close for so many."""
    from math import erfc, sqrt

    z = (1100 - 900 - 1) / sqrt(2000)
    assert mcnemar(1100, 900) == pytest.approx(erfc(z / sqrt(2)), rel=0.02)


def test_the_paired_bootstrap_draws_the_same_questions_for_both():
    """A system that is better by the same amount everywhere is so in every draw, however much the questions differ."""
    hard = np.random.default_rng(3).random(40) / 2
    change = difference(mean_with_interval(hard), mean_with_interval(hard + 0.25))
    assert (change.value, change.low, change.high) == pytest.approx((0.25, 0.25, 0.25))
    assert change.count == 40 and change.p is None


def test_the_paired_bootstrap_against_plain_loops():
    generator = np.random.default_rng(5)
    first, second = (generator.random(30) < share for share in (0.3, 0.6))
    change = difference(*(mean_with_interval(each.astype(float)) for each in (first, second)))
    drawn = np.random.default_rng(0).integers(0, 30, size=(1000, 30))
    gaps = [np.mean([float(second[n]) - float(first[n]) for n in row]) for row in drawn]
    assert (change.low, change.high) == pytest.approx(tuple(np.percentile(gaps, [2.5, 97.5])))
    gained, lost = int((second & ~first).sum()), int((first & ~second).sum())
    assert (change.gained, change.lost, change.p) == (gained, lost, mcnemar(gained, lost))
    assert change.value == pytest.approx((gained - lost) / 30)


def test_questions_that_one_of_both_does_not_judge_are_left_out():
    nan = np.nan
    change = difference(mean_with_interval([1, 0, nan, 1]), mean_with_interval([0, 1, 1, nan]))
    assert (change.count, change.value, change.gained, change.lost, change.p) == (2, 0.0, 1, 1, 1.0)
    assert difference(mean_with_interval([nan, 1]), mean_with_interval([1, nan])) is None


def test_a_corpus_metric_is_computed_anew_of_each_draw():
    """BLEU-1's difference is that of the corpus scores, not of the sentences' means."""
    right = [["the cat sat on the mat"], ["a dog"], ["paris is in france"]]
    one = bleu_1(["the cat", "a dog", "rome"], right)
    other = bleu_1(["the cat sat on a mat", "the dog", "paris is in france"], right)
    change = difference(one, other)
    assert change.value == pytest.approx(other.value - one.value)
    assert abs(change.value - np.mean(other.per_example - one.per_example)) > 0.01  # they do differ
    assert change.low < change.value < change.high and change.p is None
    drawn = np.random.default_rng(0).integers(0, 3, size=(1000, 3))
    gaps = []
    for row in drawn:
        scores = [
            [["the cat", "a dog", "rome"][n] for n in row],
            [["the cat sat on a mat", "the dog", "paris is in france"][n] for n in row],
        ]
        gaps.append(np.subtract(*(bleu_1(each, [right[n] for n in row]).value for each in scores[::-1])))
        if len(gaps) == 20:
            break
    every = [_resampled_gap(one, other, row) for row in drawn]
    assert every[:20] == pytest.approx(gaps)
    assert (change.low, change.high) == pytest.approx(tuple(np.percentile(every, [2.5, 97.5])))


def _resampled_gap(one, other, row):
    return float(
        np.subtract(*(m.aggregate(m.statistics[row].mean(axis=0, keepdims=True))[0] for m in (other, one)))
    )


def test_only_a_mean_of_zeros_and_ones_is_right_or_wrong():
    assert is_right_or_wrong(mean_with_interval([0, 1, np.nan]))
    assert not is_right_or_wrong(mean_with_interval([0, 0.5]))
    assert not is_right_or_wrong(mean_with_interval([np.nan]))
    assert not is_right_or_wrong(bleu_1(["a", "b"], [["a"], ["c"]]))


# -- the command -----------------------------------------------------------------------------------

QUESTIONS = [(str(n), f"question {n}?", [f"Answer {n}", f"{n}"]) for n in range(8)]


def evaluation(
    folder: Path,
    right: set[int],
    questions=QUESTIONS,
    task: dict | None = None,
    sets: dict[int, str] | None = None,
) -> Path:
    """A finished evaluation as evaluate.py leaves it: questions in `right` are answered rightly, the others "wrong"."""
    results = folder / "evaluation" / "test-abc"
    results.mkdir(parents=True)
    config = {
        "checkpoint": str(folder),
        "split": "test",
        "limit": None,
        "task": {"_target_": "rag.tasks.qa.QuestionAnswering", **(task or {})},
    }
    OmegaConf.save(OmegaConf.create(config), results / "config.yaml")
    write_json(results / "result.json", {"identity": "1"})
    lines = []
    for id, question, answers in questions:
        prediction = f"the answer {id}!" if int(id) in right else "wrong"
        record = {"id": id, "question": question, "answers": answers, "prediction": prediction}
        if sets:
            record["set"] = sets[int(id)]
        lines.append(json.dumps(record | {"logprob": -1.0}))
    (results / "predictions.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def test_two_runs_side_by_side(tmp_path, capsys):
    """The first has 0 to 3 right, the second 3 to 7: 4 gained, 3 lost; the questions stand in another order."""
    one = evaluation(tmp_path / "one", {0, 1, 2, 3})
    other = evaluation(tmp_path / "other", {3, 4, 5, 6, 7}, questions=QUESTIONS[::-1])
    page = tmp_path / "page.md"
    main([str(one), str(other), f"output={page}"])
    printed = capsys.readouterr().out
    rows = [line.split("│")[1:-1] for line in printed.splitlines() if line.startswith("│")]
    em = {row[1].strip(): [cell.strip() for cell in row] for row in rows if row[0].strip() == "em"}
    assert em["one"][2:4] == ["8", "50.0"] and em["other"][2:4] == ["8", "62.5"]
    assert em["other"][5] == "+12.5" and em["other"][7] == "1"  # 2 · (1+7+21+35)/128
    assert em["other"][8] == "+4 −3"
    assert "4 questions that other has right and one wrong" in printed
    assert "question 5?  one: wrong; other: the answer 5!" in printed
    assert "3 questions that one has right and other wrong" in printed
    text = page.read_text()
    assert (
        text.count("| other |\n") == 4
        and "| question 0? | Answer 0 / 0 | the answer 0! | wrong | one |" in text
    )


def test_how_many_questions_are_shown(tmp_path, capsys):
    one, other = evaluation(tmp_path / "one", set()), evaluation(tmp_path / "other", set(range(8)))
    main([str(one), str(other), "show=3"])
    printed = capsys.readouterr().out
    assert printed.count("other: the answer") == 3 and "5 more" in printed
    main([str(one), str(other), "show=all"])
    assert capsys.readouterr().out.count("other: the answer") == 8


def test_three_runs_and_a_task_that_counts_some_sets_alone(tmp_path, capsys):
    """Only the questions of the set "people" count: 0 to 3 of the eight."""
    sets = {n: "people" if n < 4 else "facts" for n in range(8)}
    task = {"report_sets": ["people"]}
    runs = [
        str(evaluation(tmp_path / name, right, task=task, sets=sets))
        for name, right in (("a", {0, 5}), ("b", {0, 1, 2}), ("c", {4, 5, 6}))
    ]
    main(runs)
    printed = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in printed.splitlines() if "│" in line]
    assert [row[1:4] for row in rows if row[0] == "em"] == [
        ["a", "4", "25.0"],
        ["b", "4", "75.0"],
        ["c", "4", "0.0"],
    ]
    assert "not corrected" in printed and "question 4?" not in printed


def test_an_older_evaluation_reads_the_sets_from_the_tasks_file(tmp_path, capsys):
    file = tmp_path / "questions.jsonl"
    records = [
        {"id": id, "question": q, "answers": a, "set": "people" if int(id) < 4 else "facts"}
        for id, q, a in QUESTIONS
    ]
    file.write_text("".join(json.dumps(each) + "\n" for each in records))
    task = {"report_sets": ["people"], "test": str(file)}
    main([str(evaluation(tmp_path / name, {0, 6}, task=task)) for name in "ab"])
    assert "25.0" in capsys.readouterr().out  # of four, not two of eight
    file.unlink()
    with pytest.raises(UserError, match="questions.jsonl does not exist"):
        main([str(tmp_path / name) for name in "ab"])


def test_what_cannot_be_compared(tmp_path):
    one = evaluation(tmp_path / "one", {1})
    fewer = evaluation(tmp_path / "fewer", {1}, questions=QUESTIONS[:5])
    with pytest.raises(UserError, match="one answers 8 questions and fewer 5, and 5 of them are the same"):
        main([str(one), str(fewer)])
    changed = [(id, question, ["another answer"]) for id, question, _ in QUESTIONS]
    with pytest.raises(UserError, match="and 0 of them are the same with the same answers"):
        main([str(one), str(evaluation(tmp_path / "changed", {1}, questions=changed))])
    fever = {"_target_": "rag.tasks.fever.Fever", "labels": ["a"]}
    with pytest.raises(UserError, match="one is judged as QuestionAnswering and fever as Fever"):
        main([str(one), str(evaluation(tmp_path / "fever", {1}, task=fever))])
    hidden = [(id, question, []) for id, question, _ in QUESTIONS]
    runs = [str(evaluation(tmp_path / f"hidden{n}", set(), questions=hidden)) for n in (1, 2)]
    with pytest.raises(UserError, match="none of its questions has a public answer"):
        main(runs)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nothing", "nothing"], "nothing does not exist"),
        ([str(PROJECT / "docs")], "takes two evaluations or more"),
        (["shwo=3"], "did you mean show"),
        (["show=many"], "a number of questions is expected"),
    ],
)
def test_wrong_commands_are_told_before_anything_heavy_is_imported(arguments, said):
    code = (
        "import sys; sys.argv = ['compare', *sys.argv[1:]]; from rag.compare import main\n"
        "try: main(sys.argv[1:])\nexcept Exception as error: print(error)\n"
        "print('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=PROJECT
    )
    told, heavy = done.stdout.strip().splitlines()
    assert said in told and heavy == "False"

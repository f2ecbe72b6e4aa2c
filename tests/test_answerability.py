"""Calibration of the answerability score: its regression, its file, what it is fitted on, and the whole analysis."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from test_analysis import Folders

from rag.analysis.__main__ import main as analyse
from rag.analysis.answerability import answerability, halves
from rag.analysis.opened import open_model, settings
from rag.ask.__main__ import main as ask_main
from rag.ask.documents import CALIBRATION
from rag.compose import CONFIGS, compose_config
from rag.errors import UserError
from rag.evaluation.calibration import Calibration, identity_of
from rag.evaluation.evidence import FEATURES, Evidence
from rag.evaluation.unanswerable import about_nobody, ask, holds_answer, retrieve_without
from rag.index.passage import Passage
from rag.metrics.record import Record
from rag.model import RagModel
from rag.tasks.example import Example
from rag.tasks.qa import QuestionAnswering

# Of the seven passages of conftest: six ways to ask four things, "river" being in most passages.
ASKED = [
    (f"{asking} {what}?", answers, ids)
    for asking in ("what is", "tell me", "which is", "please name", "do you know", "say")
    for what, answers, ids in (
        ("the capital of France", ["Paris"], ["1"]),
        ("the river of Rome", ["the Tiber"], ["3"]),
        ("the author of The Sun Also Rises", ["Ernest Hemingway"], ["5"]),
        ("the length of the Seine", ["777 km"], ["6"]),
    )
]


@pytest.fixture
def folders(tmp_path, index, question_encoder, bart) -> Folders:
    made = Folders(tmp_path, index, question_encoder, bart)
    rows = [{"question": q, "answers": a, "positive_ids": p} for q, a, p in ASKED]
    made.questions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return made


def evidence(margin: float, overlap: float = 0.5, unknown: int = 0) -> Evidence:
    return Evidence(-1.0, margin, 0.3, 5.0, overlap, 0.5, ("x",) * unknown)


# -- the regression ----------------------------------------------------------------------------------


def fitted(precision: float = 0.8, **more) -> Calibration:
    generator = np.random.default_rng(4)
    truth = generator.random(200) < 0.5
    margins = truth * 2.0 + generator.normal(size=200)
    return Calibration.fit([evidence(m) for m in margins], truth.tolist(), precision, **more)


def test_the_score_is_the_probability_that_maximises_the_likelihood():
    """Against plain gradient descent on the same penalised loss, both kinds weighing the same."""
    generator = np.random.default_rng(1)
    truth = generator.random(90) < 0.3
    table = [
        evidence(t * 1.5 + m, o)
        for t, m, o in zip(truth, generator.normal(size=90), generator.random(90), strict=True)
    ]
    names = ("margin", "overlap")
    found = Calibration.fit(table, truth.tolist(), 0.5, names)
    features = torch.tensor(np.array([each.features(names) for each in table]))
    features = (features - features.mean(0)) / features.std(0, correction=0)
    y = torch.tensor(truth, dtype=torch.float64)
    weigh = torch.where(y > 0, 0.5 / y.mean(), 0.5 / (1 - y.mean()))
    parameters = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([parameters], max_iter=200, tolerance_grad=1e-10)

    def loss():
        optimiser.zero_grad()
        logits = features @ parameters[:2] + parameters[2]
        value = (
            weigh * torch.nn.functional.binary_cross_entropy_with_logits(logits, y, reduction="none")
        ).sum()
        value = value + 0.5 * parameters[:2].square().sum()
        value.backward()
        return value

    optimiser.step(loss)
    assert [*found.weights, found.bias] == pytest.approx(parameters.tolist(), abs=2e-3)
    first = float(torch.sigmoid(features[0] @ parameters[:2].detach() + parameters[2].detach()))
    assert found.score(table[0]) == pytest.approx(first, abs=1e-3)


def test_the_threshold_keeps_a_precision_and_another_can_be_asked_for():
    low, high = fitted(0.6), fitted(0.95)
    assert low.threshold < high.threshold and low.weights == high.weights
    for each in (low, high):
        point = next(point for point in each.curve if point.threshold == each.threshold)
        assert point.precision >= (each.precision or 1)
        assert point.precision == pytest.approx(point.answered / (point.answered + 1 - point.refused))
    assert low.at(0.95) == high
    with pytest.raises(UserError, match="was reached at no threshold: give at most"):
        replace(low, curve=low.curve[:1]).at(0.9)
    with pytest.raises(UserError, match="is no share"):
        low.at(1.5)


def test_too_few_questions_calibrate_nothing():
    with pytest.raises(UserError, match="at least 10 of either kind"):
        Calibration.fit([evidence(1.0)] * 30, [True] * 25 + [False] * 5, 0.8)


def test_a_feature_that_never_varies_weighs_nothing():
    assert fitted().weights[FEATURES.index("unknown")] == 0


# -- the file ------------------------------------------------------------------------------------------


def test_a_calibration_is_the_same_from_its_file(tmp_path):
    made = fitted(fitted_for={"model": {"a": 1}, "weights": {}}, n_docs=3, passages=7, corpus="c")
    made.save(tmp_path / "c.json")
    assert Calibration.open(tmp_path / "c.json") == made


def test_the_projects_own_calibration_is_for_any_folder():
    """What depends on the number of passages, the retriever's score, is no part of it."""
    made = Calibration.open(CONFIGS / CALIBRATION)
    assert "retrieval" not in made.features and made.corpus is None
    assert made.n_docs == compose_config("documents", ["documents=x"]).n_docs and made.precision == 0.8
    assert made.threshold < made.at(0.9).threshold
    assert made.believes(Evidence(-0.1, 6.0, 0.0, 30.0, 0.9, 0.95))
    assert not made.believes(Evidence(-5.0, -3.0, 0.5, 10.0, 0.2, 0.3))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format": 2}, "not a calibration of format 1"),
        ({"weights": [1.0]}, "do not fit together"),
        ({"weights": ["x"] * 7}, "damaged"),
        ({"scale": [0.0] * 7}, "do not fit together"),
        ({"bias": math.inf}, "do not fit together"),
        ({"features": ["nothing"] * 7}, "do not fit together"),
        ({"curve": [{"a": 1}]}, "damaged"),
        ({"curve": None}, "damaged"),
        ({"threshold": None}, "damaged"),
    ],
)
def test_a_damaged_file_is_one_sentence(tmp_path, change, said):
    file = tmp_path / "c.json"
    fitted().save(file)
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(UserError, match=said):
        Calibration.open(file)


# -- questions without an answer ---------------------------------------------------------------------


def opened(folders: Folders) -> tuple[RagModel, QuestionAnswering, list[Example]]:
    model, _ = open_model(settings(folders.trained("rag_sequence", "RagSequence")))
    task = QuestionAnswering(test=str(folders.questions))
    return model, task, task.examples("test")


def test_no_passage_that_is_read_holds_the_answer(folders):
    """As if those passages were not in the index: the others in their order, with their own scores."""
    model, task, examples = opened(folders)
    out = [holds_answer(task, example) for example in examples]
    store = model.retriever.index.passages
    assert [out[1](store[row]) for row in range(7)] == [False, False, True, False, False, False, True]
    assert out[0](Passage("9", "Paris", "A city."))  # the reader sees the title too
    with torch.inference_mode():
        batch = model.prepare([example.question for example in examples])
        every = model.retriever(batch.questions, 7)
        found = retrieve_without(model, batch.questions, 3, out)
        deep = retrieve_without(model, batch.questions, 7, out)
    for number, is_right in enumerate(out):
        left = [place for place, row in enumerate(every.rows[number]) if not is_right(store[int(row)])]
        assert found.rows[number].tolist() == every.rows[number, left[:3]].tolist()
        torch.testing.assert_close(found.scores[number], every.scores[number, left[:3]])
        assert deep.rows[number].tolist() == [*every.rows[number, left], *[-1] * (7 - len(left))]
        assert (deep.scores[number] == -torch.inf).sum() == 7 - len(left) > 0


def test_what_was_asked_without_its_passages_is_never_right(folders):
    model, task, examples = opened(folders)
    decoding = open_model(settings(folders.root / "rag_sequence"))[1]
    full = ask(model, examples[:4], decoding, 3, 3)
    without = ask(model, examples[:4], decoding, 3, 3, [holds_answer(task, each) for each in examples[:4]])
    assert [each.answerable for each in full] == [True] * 4
    assert [(each.answerable, each.right, each.number) for each in without] == [
        (False, False, n) for n in range(4)
    ]
    assert [each.question for each in without] == [example.question for example in examples[:4]]
    with torch.inference_mode():
        assert full[0].evidence.log_probability != without[0].evidence.log_probability


def test_questions_without_answers_say_so(folders):
    task = QuestionAnswering(test=str(folders.questions))
    with pytest.raises(UserError, match="nothing says which passages answer"):
        holds_answer(task, Example("who?", ()))


def test_nobody_has_a_name_of_others(index):
    titled = [
        ("When was Ada Abbott born?", "Ada Abbott"),
        ("Where did Bo Cole live?", "Bo Cole"),
        ("Who knew Di Eames?", "Di Eames"),
        ("What is it?", "Fay Gray"),
    ]

    class Store(list):
        def row_of(self, id: str) -> int:
            return int(id)

    store = Store(Passage(str(n), title, "x") for n, (_, title) in enumerate(titled))
    store.append(Passage("4", "Bo Abbott", "x"))  # a name that is taken
    examples = [Example(question, ("a",), (str(n),)) for n, (question, _) in enumerate(titled)]
    made = about_nobody(examples, store)  # type: ignore[arg-type]
    assert [number for number, _ in made] == [0, 1, 2]  # the last does not name its title
    titles = {passage.title for passage in store}
    for number, example in made:
        before, after = titled[number][0].split(titled[number][1])
        name = example.question.removeprefix(before).removesuffix(after)
        assert name not in titles and example.answers == () and len(name.split()) == 2
    assert about_nobody(examples[:2], store) == []  # type: ignore[arg-type]


def test_questions_about_one_article_stay_in_one_half(index):
    examples = [Example("q", ("a",), (str(1 + n % 7),)) for n in range(70)] + [
        Example("r", ("a",), ("none",))
    ] * 2
    half = halves(examples, index.passages)
    assert len({(n % 7, half[n]) for n in range(70)}) == 7
    assert 30 <= sum(half[:70]) <= 40
    assert halves(examples, index.passages) == half


# -- the analysis, and what abstains by it ---------------------------------------------------------------


def run_to_ask(folders: Folders) -> Path:
    run = folders.trained("rag_sequence", "RagSequence")
    with open(run / "config.yaml", "a") as file:
        file.write(f"paths:\n  indexes: {folders.root}\n")
    return run


def test_a_run_is_calibrated_and_abstains(folders, capsys):
    run = run_to_ask(folders)
    given = [f"checkpoint={run}", "json=true", "abstain=true", "what is the capital of France?"]
    with pytest.raises(SystemExit) as ended:
        ask_main(given)
    said = capsys.readouterr().err.splitlines()[-1]
    command = f"python -m rag.analysis answerability run={run}"
    assert (
        ended.value.code == 2 and f"abstain=true needs a calibration, and {run} has none: {command}" in said
    )
    analyse(
        ["answerability", f"run={run}", "split=test", "precision=0.1", "limit=24"]
    )  # as it says, but for the split
    page = (run / "analysis" / "answerability.md").read_text()
    assert "AUROC" in page and "refused, 90% answered" in page
    assert (run / "analysis" / "answerability.png").read_bytes()[:4] == b"\x89PNG"
    file = run / "answerability.json"
    calibration = Calibration.open(file)
    assert (
        calibration.n_docs == 3
        and calibration.passages == 7
        and calibration.corpus == folders.index.passages.sha256
    )
    assert calibration.fitted_for == identity_of(open_model(settings(run))[0])
    for threshold, abstained in ((-1.0, False), (2.0, True)):
        replace(calibration, threshold=threshold).save(file)
        capsys.readouterr()
        ask_main(given)
        record = json.loads(capsys.readouterr().out)
        assert record.get("abstained", False) is abstained and record["known"] is not abstained
        assert (record["answer"] == "not in these documents") is abstained
        assert record["threshold"] == threshold and 0 <= record["answerability"] <= 1


def test_a_calibration_of_another_model_is_refused_or_said(folders, capsys, caplog):
    run = run_to_ask(folders)
    model, _ = open_model(settings(run))
    made = fitted(fitted_for=identity_of(model), n_docs=5, corpus="other")
    made.save(run / "answerability.json")
    ask_main([f"checkpoint={run}", "json=true", "who?"])
    assert json.loads(capsys.readouterr().out)["answerability"] is not None
    assert "was fitted with K = 5, not 3" in caplog.text and "over other passages" in caplog.text
    identity = identity_of(model)
    identity["weights"] = {name: "0" for name in identity["weights"]}
    replace(made, fitted_for=identity).save(run / "answerability.json")
    ask_main([f"checkpoint={run}", "json=true", "who?"])
    assert json.loads(capsys.readouterr().out)["answerability"] is None
    assert "was fitted for another model (weights.generator" in caplog.text
    with pytest.raises(SystemExit):
        ask_main([f"checkpoint={run}", "abstain=true", "who?"])
    assert f"python -m rag.analysis answerability run={run}" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"unanswerable": "perhaps"}, "give removed, nobody or both"),
        ({"unanswerable": "nobody"}, "give unanswerable=removed"),
        ({"limit": 6}, "at least 10 of either kind"),
    ],
)
def test_mistakes_of_the_analysis(folders, more, said):
    run = folders.trained("rag_sequence", "RagSequence")
    with pytest.raises(UserError, match=said):
        answerability(run, split="test", **more)


def test_a_closed_book_has_no_evidence(folders):
    run = folders.trained("closed", "ClosedBook")
    with pytest.raises(UserError, match="reads no passages"):
        answerability(run, split="test")


def test_records_of_support_stand_beside_diversity(folders, tmp_path):
    """One picture of several settings."""
    from rag.analysis.diversity import NAMES, SUPPORTED, diversity

    run = folders.trained()
    texts = ["a b c d", "a b c", "x y", "b c d"]
    runs = []
    for name, share in (("one", 0.9), ("two", 0.4)):
        records = [Record("trigrams_supported", 3, "test", share, 0.1, 0.95, 4)]
        records.append(Record("trigrams_supported_gold", 3, "test", 0.75, 0.5, 1.0, 4))
        rows = [
            {"question": q, "answers": a, "prediction": p} for (q, a, _), p in zip(ASKED, texts, strict=False)
        ]
        folder = folders.evaluated(run, texts, name=name, records=records)
        (folder / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        config = (folder / "config.yaml").read_text()
        drawn = f"  do_sample: true\n  temperature: {1 if name == 'one' else 2}\n  max_new_tokens: 6"
        (folder / "config.yaml").write_text(config.replace("  max_new_tokens: 6", drawn))
        runs.append(folder)
    found = diversity(runs)
    assert found.table[SUPPORTED].tolist() == [75.0, 90.0, 40.0] and found.table[NAMES].isna().sum() == 3
    assert found.table["model"].tolist() == [
        "reference texts",
        "rag_token, temperature 1",
        "rag_token, temperature 2",
    ]
    assert len(found.figure.axes) == 2 and "the fewer" in found.text
    page = found.write(tmp_path / "page", "diversity", ["x"])
    assert Path(page).with_suffix(".png").stat().st_size > 10_000

"""Passages that come with their questions (retriever=given): how they are read, and that only they are marginalised."""

import json
import math
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import torch
from commands import run
from conftest import PASSAGES
from hydra.utils import instantiate
from hypothesis import given as given_values
from hypothesis import strategies as st
from omegaconf import OmegaConf
from tiny_runs import write_run
from torch.testing import assert_close

from rag.compose import compose_config
from rag.decoding.generation import generate
from rag.decoding.settings import Decoding
from rag.errors import UserError
from rag.files import read_json
from rag.generators.context import Ragged, token_rows
from rag.metrics.record import find, records_of
from rag.model import RagSequence, RagToken
from rag.reopen import reopen
from rag.retrievers import GivenPassages, LearnedScale, Questions
from rag.runs import ASKED, DATA, TASK
from rag.tasks.contexts import read_contexts
from rag.tasks.dialogue import Dialogue
from rag.tasks.fever import Fever
from rag.tasks.jeopardy import JeopardyQuestions
from rag.tasks.ms_marco import MsMarco
from rag.tasks.qa import QuestionAnswering
from rag.tasks.text_to_text import TextToText

FRANCE, TIBER = "what is the capital of France?", "which river runs through Rome"


def context(number: int, score: object = None) -> dict:
    """The passage of PASSAGES with the id `number`, as FiD writes one."""
    title, text = PASSAGES[number - 1]
    return {"id": str(number), "title": title, "text": text} | ({} if score is None else {"score": score})


ASKED_FOR = [
    # FiD writes scores as texts; this file is not in their order
    {
        "question": FRANCE,
        "answers": ["Paris"],
        "positive_ids": ["1"],
        "ctxs": [context(2, "1.5"), context(1, "2.5"), context(6, -1)],
    },
    {"question": TIBER, "answers": ["the Tiber"], "ctxs": [context(3, 0.25), context(7, 0.5)]},
]


def write(file: Path, records: list) -> str:
    file.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return str(file)


def given(tmp_path: Path, records: list, **settings) -> GivenPassages:
    task = QuestionAnswering(dev=write(tmp_path / "dev.jsonl", records))
    return GivenPassages.over(task, ["dev"], tmp_path / "given", **settings)


def test_the_best_by_score_with_its_softmax(tmp_path):
    retriever = given(tmp_path, ASKED_FOR, scale=2.0)
    found = retriever(Questions([FRANCE, TIBER], {}), 3)
    ids = [retriever.index.passages.ids(row) for row in found.rows]
    assert ids == [["1", "2", "6"], ["7", "3", ""]]
    odds = np.exp(2 * np.array([2.5, 1.5, -1.0]))
    assert_close(found.doc_logprobs[0].exp(), torch.tensor(odds / odds.sum(), dtype=torch.float32))
    both = np.exp(2 * np.array([0.5, 0.25]))
    assert_close(found.doc_logprobs[1].exp(), torch.tensor([*(both / both.sum()), 0.0], dtype=torch.float32))
    best = retriever(Questions([FRANCE], {}), 2).doc_logprobs.exp()  # over the K best alone
    assert_close(best, torch.tensor((odds[:2] / odds[:2].sum())[None], dtype=torch.float32))


@pytest.mark.parametrize("kind", [RagSequence, RagToken])
def test_the_marginal_over_fewer_passages_than_k_is_that_of_those_alone(tmp_path, bart, kind):
    """K = 5 with three and two passages: the brute-force sum over just these, and the gradient that goes with it."""
    scale = LearnedScale(1.5)
    model = kind(given(tmp_path, ASKED_FOR, scale=scale), bart, n_docs=5).eval()
    batch = model.prepare([FRANCE, TIBER], ["Paris", "the Tiber"])
    got = model(batch).logprob
    expected = []
    for record in ASKED_FOR:
        contexts = sorted(record["ctxs"], key=lambda each: -float(each["score"]))
        prior = torch.log_softmax(scale() * torch.tensor([float(each["score"]) for each in contexts]), 0)
        passages = Ragged.of(token_rows(bart.tokenizer, [f"{c['title']} / {c['text']}" for c in contexts]))
        alone = model.prepare([record["question"]], record["answers"])
        ids, mask = bart.assemble(alone.generator_questions.repeat(len(contexts)), passages)
        labels = alone.labels.repeat_interleave(len(contexts), 0)
        tokens, _ = bart.token_logprobs(bart.encode(ids, mask), mask, labels)
        if kind is RagSequence:
            expected.append((prior + tokens.sum(1)).logsumexp(0))
        else:
            expected.append((prior[:, None] + tokens).logsumexp(0).sum())
    assert_close(got, torch.stack(expected))
    of_got, of_expected = (
        torch.autograd.grad(each.sum(), scale.log, retain_graph=True)[0]
        for each in (got, torch.stack(expected))
    )
    assert of_got.abs() > 1e-4
    assert_close(of_got, of_expected, rtol=1e-3, atol=1e-5)


def test_without_scores_all_are_equally_likely_in_the_order_of_the_file_and_it_is_said(tmp_path, caplog):
    records = [{"question": FRANCE, "answers": ["Paris"], "contexts": ["Paris is it.", "Rome is not."]}]
    retriever = given(tmp_path, records)
    assert "the passages of the questions have no scores, and count as equally likely" in caplog.text
    found = retriever(Questions([FRANCE], {}), 3)
    assert_close(found.doc_logprobs.exp()[0], torch.tensor([0.5, 0.5, 0.0]))
    assert [retriever.index.passages[row].text for row in found.rows[0, :2]] == records[0]["contexts"]


@pytest.mark.parametrize(
    "written, read",
    [
        ([["Paris", ["It is big.", " It is old."]]], [(None, "Paris", "It is big. It is old.", None)]),
        ({"title": ["Paris"], "sentences": [["It is big."]]}, [(None, "Paris", "It is big.", None)]),
        ([{"contents": '"Paris"\nIt is big.', "docid": 7}], [("7", "Paris", "It is big.", None)]),
        ([{"text": "a", "score": 1}, {"text": "b", "score": 2}, {"text": "a", "score": 3}], "aba"),
        ([{"id": None, "text": "a", "relevance_score": "0.5"}], [(None, "", "a", 0.5)]),
        # a list a key: `datasets` keeps MS-MARCO's so, and any list of objects
        (
            {"is_selected": [0, 1], "passage_text": ["a", "b"], "url": ["c", "d"]},
            [(None, "", "a", None), (None, "", "b", None)],
        ),
        (
            {"title": ["A", "B"], "text": ["a", "b"], "score": [1, 2], "id": None},
            [(None, "B", "b", 2.0), (None, "A", "a", 1.0)],
        ),
    ],
)
def test_the_forms_of_passages(written, read):
    contexts = read_contexts("here", written)
    if read == "aba":  # the better of two that are the same
        read = [(None, "", "a", 3.0), (None, "", "b", 2.0)]
    assert contexts == read


@pytest.mark.parametrize(
    "written, problem",
    [
        ("a text", "here is a string, a list of passages is expected"),
        ({"text": ["a", "b"], "score": [1]}, "here: expected lists of one length under text, score"),
        ({"text": "a"}, "here: expected lists of one length under text"),
        ([{"title": "Paris"}], "here, passage 1: no text, found title"),
        ([{"text": " "}], "here, passage 1: its text is empty"),
        ([{"text": "a", "score": math.nan}], "here, passage 1: score is nan, a finite number is expected"),
        ([{"text": "a", "score": "best"}], "passage 1: score is 'best', a finite number is expected"),
        ([{"text": "a", "score": True}], "passage 1: score is True, a finite number is expected"),
        (
            [{"text": "a", "score": 1}, {"text": "b"}],
            "here: 1 of the 2 passages have a score and the others none",
        ),
        ([7], "here, passage 1 is a number, an object with text, or a text, is expected"),
    ],
)
def test_a_wrong_passage_is_named(written, problem):
    with pytest.raises(UserError) as error:
        read_contexts("here", written)
    assert problem in str(error.value)


_PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
_NAMES = st.sampled_from(
    ["id", "passage_id", "title", "text", "contents", "score", "similarity", "sentences"]
)
_ANYTHING = st.recursive(
    _PLAIN,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_NAMES, inner, max_size=4),
    max_leaves=12,
)


@given_values(st.lists(_ANYTHING, max_size=4) | _ANYTHING)
@hypothesis.settings(max_examples=400)
def test_whatever_is_written_is_read_or_refused_in_one_sentence(written):
    try:
        contexts = read_contexts("here", written)
    except UserError as error:
        assert str(error).startswith("here") and "\n" not in str(error)
        return
    assert all(text.strip() and (id is None or isinstance(id, str)) for id, _, text, _ in contexts)
    scores = [score for *_, score in contexts if score is not None]
    assert len(scores) in (0, len(contexts)) and scores == sorted(scores, reverse=True)
    assert all(map(math.isfinite, scores)) and len({each[:3] for each in contexts}) == len(contexts)


def test_a_question_without_passages_is_named_with_its_line_and_nothing_is_left(tmp_path):
    with pytest.raises(
        UserError, match=r"dev.jsonl, question 2 \(and 1 others\): no passages beside the question"
    ):
        given(
            tmp_path,
            [ASKED_FOR[0], {"question": "who?", "answers": ["x"]}, {"question": "why?", "answers": ["x"]}],
        )
    with pytest.raises(UserError, match="no question has passages of its own"):
        given(tmp_path, [{"question": "who?", "answers": ["x"]}])
    with pytest.raises(UserError, match=r"dev.jsonl, line 1: ctxs, passage 1: score is 'nan'"):
        given(tmp_path, [ASKED_FOR[0] | {"ctxs": [context(1, "nan")]}])
    assert [each for each in (tmp_path / "given").iterdir() if not each.name.startswith(".")] == []


def test_an_unknown_question_and_another_index_are_refused(tmp_path, index):
    retriever = given(tmp_path, ASKED_FOR)
    with pytest.raises(UserError, match="knows no passages of the question 'who are you"):
        retriever(Questions(["who are you?"], {}), 1)
    with pytest.raises(UserError, match="there is no index to exchange"):
        retriever.swap(index)
    with pytest.raises(UserError, match="holds passages without vectors"):
        retriever.index.search(np.zeros((1, 4), np.float32), 1)


def test_ids_that_count_within_a_question_stay_findable(tmp_path):
    """Two passages under the id 0: the second becomes a piece of it, which counts as that id where gold is sought."""
    records = [
        {"question": "a", "answers": ["x"], "ctxs": [{"id": 0, "text": "one"}, {"id": 1, "text": "two"}]},
        {"question": "b", "answers": ["x"], "ctxs": [{"id": 0, "text": "three"}, {"id": 1, "text": "two"}]},
        {
            "question": "c",
            "answers": ["x"],
            "ctxs": [{"id": 0, "text": "four"}, {"id": "0#2", "text": "five"}],
        },
    ]
    retriever = given(tmp_path, records)
    rows = retriever(Questions(["a", "b", "c"], {}), 2).rows
    ids = [retriever.index.passages.ids(row) for row in rows]
    assert ids == [["0", "1"], ["0#2", "1"], ["0#3", "0#2#2"]]
    assert retriever.index.passages[int(rows[1, 1])].text == "two"


def test_of_a_question_that_comes_twice_the_first_counts_and_it_is_said(tmp_path, caplog):
    again = [ASKED_FOR[0], ASKED_FOR[0] | {"ctxs": [context(4, 1)]}, ASKED_FOR[0]]
    retriever = given(tmp_path, again)
    assert (
        "1 questions come again with other passages, such as 'what is the capital of France?'" in caplog.text
    )
    assert retriever.index.passages.ids(retriever(Questions([FRANCE], {}), 3).rows[0]) == ["1", "2", "6"]


def test_it_is_kept_and_made_again_from_its_description(tmp_path):
    first = given(tmp_path, ASKED_FOR)
    folder = first.index.folder
    before = (folder / "rows.npy").stat().st_mtime_ns
    task = {"_target_": "rag.tasks.qa.QuestionAnswering", "dev": str(tmp_path / "dev.jsonl")}
    root = {"task": task, "asked": ["dev"], "data": str(tmp_path), "made": first.description()}
    assert (TASK, ASKED, DATA) == ("${task}", "${asked}", "${data}")
    again = instantiate(OmegaConf.to_container(OmegaConf.create(root), resolve=True)["made"])
    assert again.index.folder == folder and (folder / "rows.npy").stat().st_mtime_ns == before
    assert again.identity() == first.identity()
    np.save(folder / "rows.npy", np.array([99]))
    with pytest.raises(UserError, match="is damaged .*: delete it, and it is made again"):
        given(tmp_path, ASKED_FOR)


# -- the scripts -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def questions(tmp_path_factory) -> str:
    return write(tmp_path_factory.mktemp("asked") / "dev.jsonl", ASKED_FOR)


@pytest.mark.parametrize("model", ["rag_sequence", "rag_token"])
def test_a_trained_model_is_evaluated_with_given_passages(tmp_path, index, questions, model, capsys):
    """Another retriever than it was trained with, a sweep of K beyond what is given, and recall of the gold passage."""
    run_folder = write_run(tmp_path / "outputs" / model, model, index)
    results = tmp_path / "results"
    settings = [
        f"checkpoint={run_folder}",
        "retriever=given",
        "retriever.scale=2.0",
        "task=qa",
        f"task.test={questions}",
        "task.train=null",
        "task.dev=null",
        "task.passages=null",
        f"paths.data={tmp_path}",
        "n_docs=3",
        "k_sweep=[1,2,4]",
        "recall_at=[1,3]",
        "index.path=nowhere",
        f"results={results}",
    ]
    assert run("evaluate", *settings) == 0, capsys.readouterr().err
    result = read_json(results / "result.json")
    assert result["index"] == {"type": "given passages", "passages": 5}
    records = records_of(result)
    recall = find(records, "recall", 1)
    assert recall is not None and (recall.value, recall.n) == (
        1.0,
        1,
    )  # one of the two names its gold passage
    found = find(records, "answer_recall", 3)
    assert found is not None and found.value == 1.0
    assert {each.k for each in records if each.metric == "em"} == {1, 2, 3, 4}
    lines = (results / "predictions.jsonl").read_text().splitlines()
    prior = [passage["prior"] for passage in json.loads(lines[1])["passages"]]
    assert prior == pytest.approx([1 / (1 + math.exp(-0.5)), 1 / (1 + math.exp(0.5))], abs=1e-4)


def test_a_model_is_trained_over_given_passages_without_an_index(tmp_path, bart, questions, capsys):
    """train.py and evaluate.py, with the scale of the scores learned; the run says how it is made again."""
    bart.save_pretrained(tmp_path / "bart")
    settings = [
        "experiment=null",
        "name=given",
        "model=rag_token",
        "retriever=given",
        "+retriever.scale._target_=rag.retrievers.LearnedScale",
        "+retriever.scale.start=0.5",
        "generator=bart_base",
        f"generator.path={tmp_path / 'bart'}",
        "task=qa",
        f"task.train={questions}",
        f"task.dev={questions}",
        f"task.passages={tmp_path / 'none.tsv'}",
        "corpus=local",
        "inputs=['${task.train}','${task.dev}','${index.path}']",
        f"paths.outputs={tmp_path / 'outputs'}",
        f"paths.indexes={tmp_path / 'indexes'}",
        f"paths.data={tmp_path}",
        "n_docs=3",
        "decoding.max_new_tokens=4",
        "datamodule.batch_size=2",
        "optimization.question_encoder_lr=0.1",
        "optimization.warmup_steps=0",
        "trainer.max_steps=2",
        "trainer.val_check_interval=2",
        "trainer.accelerator=cpu",
        "monitor=dev/nll_per_example",
        "monitor_mode=min",
    ]
    assert run("train", *settings) == 0, capsys.readouterr().err
    run_folder = tmp_path / "outputs" / "given"
    saved = read_json(run_folder / "model" / "model.json")
    assert saved["index"] is None and saved["model"]["retriever"]["task"] == "${task}"
    assert "dev/recall@3" in read_json(run_folder / "result.json")["metrics"]
    assert run("train", *settings) == 0
    assert "already exists, made with these settings" in capsys.readouterr().out
    model = reopen(run_folder)
    assert model.retriever.scale().item() != pytest.approx(
        0.5, abs=1e-3
    )  # it was trained, and its weight read again
    test = write(tmp_path / "test.jsonl", [ASKED_FOR[1] | {"ctxs": [context(5, 3), context(4, 3.5)]}])
    again = [f"checkpoint={run_folder}", f"task.test={test}", f"results={tmp_path / 'results'}"]
    assert run("evaluate", *again) == 0, capsys.readouterr().err
    (line,) = (tmp_path / "results" / "predictions.jsonl").read_text().splitlines()
    assert [passage["id"] for passage in json.loads(line)["passages"]] == ["4", "5"]


def test_a_released_checkpoint_reads_given_passages(tmp_path, retriever, bart, questions, capsys):
    """In the format of facebook/rag-sequence-nq, without an index: what it answers is what Python gives."""
    RagSequence(retriever, bart, n_docs=3).save_pretrained(tmp_path / "released")
    results = tmp_path / "results"
    settings = [
        "retriever=given",
        "task=qa",
        f"task.test={questions}",
        f"paths.data={tmp_path}",
        f"results={results}",
    ]
    settings += [f"checkpoint={tmp_path / 'released'}", "n_docs=2", "decoding.max_new_tokens=10"]
    assert run("evaluate", *settings) == 0, capsys.readouterr().err
    said = [json.loads(line) for line in (results / "predictions.jsonl").read_text().splitlines()]
    assert [[each["id"] for each in one["passages"]] for one in said] == [["1", "2"], ["7", "3"]]
    given_ones = GivenPassages.over(QuestionAnswering(test=questions), ["test"], tmp_path / "other")
    model = RagSequence.from_pretrained(tmp_path / "released", retriever=given_ones).eval()
    answers = generate(model, model.read(model.prepare([FRANCE, TIBER]), 2), Decoding(max_new_tokens=10))
    assert [one[0].text for one in answers] == [one["prediction"] for one in said]
    with pytest.raises(UserError, match="searches an index: give index, or another retriever"):
        RagSequence.from_pretrained(tmp_path / "released")


@pytest.mark.parametrize("experiment", ["local/rag_sequence", "local/rag_token", "scratch/rag_token"])
def test_an_experiment_takes_the_retriever_as_its_file_says(experiment):
    """A scale that the experiment's own retriever needs is none of given passages'."""
    cfg = compose_config(
        "train", [f"experiment={experiment}", "retriever=given", "task.passages=a", "task.train=b"]
    )
    assert cfg.retriever._target_ == "rag.retrievers.GivenPassages.over"
    assert (
        set(cfg.retriever) == {"_target_", "task", "splits", "cache", "scale"} and cfg.retriever.scale == 1.0
    )


PASSAGES_OF_MS_MARCO = {
    "is_selected": [0, 1],
    "passage_text": ["It is old.", "It is Paris."],
    "url": ["a", "b"],
}


@pytest.mark.parametrize(
    "make, record, texts",
    [
        (Fever, {"claim": FRANCE, "label": "SUPPORTS", "ctxs": [context(1)]}, [PASSAGES[0][1]]),
        (JeopardyQuestions, {"answer": FRANCE, "clue": "It is so", "ctxs": [context(1)]}, [PASSAGES[0][1]]),
        (TextToText, {"input": FRANCE, "target": "Paris", "contexts": ["It is Paris."]}, ["It is Paris."]),
        (Dialogue, {"history": FRANCE, "reply": "Paris", "passages": [context(1)]}, [PASSAGES[0][1]]),
        (
            MsMarco,
            {
                "query_id": 7,
                "query": FRANCE,
                "wellFormedAnswers": ["Paris."],
                "passages": PASSAGES_OF_MS_MARCO,
            },
            ["It is old.", "It is Paris."],
        ),
    ],
)
def test_every_task_reads_the_passages_that_come_with_its_questions(make, record, texts, tmp_path):
    task = make(dev=write(tmp_path / "dev.jsonl", [record]))
    retriever = GivenPassages.over(task, ["dev"], tmp_path / "given")
    (example,) = task.examples("dev")
    assert example.contexts is None  # they are not kept
    rows = retriever(Questions([example.question], {}), 2).rows[0]
    assert [retriever.index.passages[row].text for row in rows if row >= 0] == texts


def test_ms_marcos_own_file_brings_its_passages(tmp_path):
    """A mapping from row to value a key; each passage an object."""
    (tmp_path / "dev_v2.1_public.json").write_text(
        json.dumps(
            {
                "query_id": {"0": 7},
                "query": {"0": FRANCE},
                "answers": {"0": ["Paris"]},
                "wellFormedAnswers": {"0": ["It is Paris."]},
                "passages": {"0": [{"is_selected": 1, "passage_text": "It is Paris.", "url": "a"}]},
            }
        )
    )
    task = MsMarco(dev=str(tmp_path / "dev_v2.1_public.json"))
    retriever = GivenPassages.over(task, ["dev"], tmp_path / "given")
    assert [passage.text for passage in retriever.index.passages] == ["It is Paris."]


def test_a_row_whose_passages_are_wrong_is_left_out_where_that_is_asked_for(tmp_path, caplog):
    wrong = {"question": "and this?", "answers": ["no"], "ctxs": [context(1), {"title": "no text"}]}
    file = write(tmp_path / "dev.jsonl", [ASKED_FOR[0], wrong, ASKED_FOR[1]])
    with pytest.raises(UserError, match="dev.jsonl, line 2: ctxs, passage 2: no text, found title"):
        GivenPassages.over(QuestionAnswering(dev=file), ["dev"], tmp_path / "given")
    task = QuestionAnswering(dev=file, on_bad_row="skip")
    retriever = GivenPassages.over(task, ["dev"], tmp_path / "given")
    assert [each.question for each in task.examples("dev")] == [FRANCE, TIBER]
    assert retriever.contexts.questions == [FRANCE, TIBER]
    assert "1 row left out of 3" in caplog.text and "line 2: ctxs, passage 2: no text" in caplog.text

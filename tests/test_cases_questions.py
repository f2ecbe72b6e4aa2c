"""Question files in the forms people really have: read as they are meant, or one sentence that names the row."""

import json
import re
from pathlib import Path

import pytest

from rag.errors import UserError
from rag.index.readers import read_passages
from rag.retrievers import BM25
from rag.tasks.contexts import read_contexts
from rag.tasks.dpr_json import open_dpr_json
from rag.tasks.forms import SUPPORTED
from rag.tasks.qa import QuestionAnswering, read_examples
from rag.tasks.records import said_form

CASES = Path(__file__).parents[2] / "shared/cases"
needs_cases = pytest.mark.skipif(not CASES.exists(), reason="needs ../shared/cases")

CAN, HOSE = "who sells the milk can?", "where is the garden hose sold?"
TWO = [(CAN, ("Pia Roth",)), (HOSE, ("Dresden", "dresden"))]
ONE_ANSWER_EACH = [(CAN, ("Pia Roth",)), (HOSE, ("Dresden",))]
# file: (form that is said, questions with their answers, gold passages of each)
READ: dict[str, tuple[str | None, list[tuple[str, tuple[str, ...]]], list[tuple[str, ...]]]] = {
    "01_ours.jsonl": (None, TWO, [("16",), ("4",)]),
    "02_nqopen.jsonl": ("nq_open", TWO, [(), ()]),
    "03_dpr_qas.csv": ("csv", TWO, [(), ()]),
    "04_plain.csv": ("csv", ONE_ANSWER_EACH, [(), ()]),
    "05_plain.tsv": ("tsv", ONE_ANSWER_EACH, [(), ()]),
    "06_squad.json": ("squad", TWO[:1], [()]),
    "08_kilt.jsonl": ("kilt", TWO, [(), ()]),
    "09_fid.json": ("fid", TWO, [(), ()]),
    "11_dpr_train.json": ("dpr", TWO, [("16",), ("4",)]),
    "12_dpr_noid.json": ("dpr", TWO, [(), ()]),
    "13_hf.source": ("source", ONE_ANSWER_EACH, [(), ()]),
    "14_flashrag.jsonl": ("flashrag", TWO, [(), ()]),
    "17_nqopen_str.jsonl": ("nq_open", ONE_ANSWER_EACH, [(), ()]),
    "20_bomcrlf.jsonl": (None, TWO, [(), ()]),
    "21_surrogate.jsonl": (None, [("who \ufffd sells?", ("Pia",))], [()]),
    "25_cap.jsonl": ("triviaqa", ONE_ANSWER_EACH, [(), ()]),
    "30_pos_titles.jsonl": (None, TWO[:1], [("Pia Roth",)]),
}
DPR = {  # questions, with gold passages' ids, and passages that are converted for training
    "dpr_ok.json": (45, True, 20),
    "dpr_lines.jsonl": (45, True, 20),
    "dpr_nohard.json": (45, True, 20),
    "dpr_noids.json": (45, False, 20),
    "dpr_minimal.json": (45, False, 20),
    "dpr_dev.json": (15, True, 18),
}
REFUSED = {
    "13_hf.target": "13_hf.target is not in a supported format",
    "19_emptyanswers.jsonl": (
        "line 1: answers is an empty list, at least one string is expected (1 row like this, 1 other row is right: "
        "mend the file, or leave such rows out with task.on_bad_row=skip)"
    ),
    "26_questiononly.txt": "26_questiononly.txt is not in a supported format",
    "27_answers_none.jsonl": "line 1: answers is null, a list of strings is expected",
}
LONG = {"29_longq.jsonl": 601}  # words of its one question


@needs_cases
def test_every_file_has_its_case():
    here = {path.name for path in (CASES / "questions").iterdir()}
    assert here - {"13_hf.target"} <= {*READ, *DPR, *REFUSED, *LONG}, "a new file: say what it should give"


@needs_cases
@pytest.mark.parametrize("name", READ)
def test_read_as_it_is_meant(name, capsys):
    form, expected, gold = READ[name]
    file = CASES / "questions" / name
    examples = QuestionAnswering(dev=str(file)).examples("dev")
    assert [(each.question, each.answers) for each in examples] == expected
    assert [each.positive_ids for each in examples] == gold
    said = capsys.readouterr().out
    assert said == "" if form is None else said.endswith(f"(task.format={form})\n")


@needs_cases
@pytest.mark.parametrize("name", REFUSED)
def test_refused_in_one_sentence_whose_advice_works(name):
    file = str(CASES / "questions" / name)
    with pytest.raises(UserError) as error:
        QuestionAnswering(dev=file).examples("dev")
    message = str(error.value)
    assert REFUSED[name] in message and "\n" not in message
    assert SUPPORTED in message or re.search(r"line \d+", message)
    if "on_bad_row=skip" in message:
        assert [e.question for e in QuestionAnswering(dev=file, on_bad_row="skip").examples("dev")] == ["b?"]


@needs_cases
@pytest.mark.parametrize("name", DPR)
def test_dprs_training_files(name, tmp_path):
    """As questions with answers, and as training data, where passages without ids are known by their text."""
    count, with_ids, passages = DPR[name]
    file = CASES / "questions" / name
    examples = read_examples(file)
    assert len(examples) == count and all(len(each.answers) == 1 for each in examples)
    assert all(bool(each.positive_ids) == with_ids for each in examples)
    store, asked = open_dpr_json(file, tmp_path)
    assert len(asked) == count and all(len(each.positives) == 1 for each in asked)
    assert len(store) == passages
    for example, each in zip(examples, asked, strict=True):
        assert example.question == each.question and example.answers[0] in store[int(each.positives[0])].text


@needs_cases
@pytest.mark.parametrize("name", LONG)
def test_a_long_question_is_read_whole(name):
    (example,) = read_examples(CASES / "questions" / name)
    assert len(example.question.split()) == LONG[name]


@needs_cases
def test_fids_passages_come_with_their_scores():
    task = QuestionAnswering(dev=str(CASES / "questions/09_fid.json"))
    contexts = [read_contexts(*each.contexts) for each in task.read(task.source("dev"))]
    text = "Pia Roth sells the milk can."
    assert contexts == [[("16", "Pia Roth", text, 1.0)], [("4", "Pia Roth", text, 1.0)]]


@needs_cases
def test_a_question_without_a_word_of_the_corpus_is_found_nothing_for(tmp_path):
    """bm25/train_one.jsonl has one, "qzx vbn?": BM25 finds nothing, and the question is no reason to stop."""
    examples = read_examples(CASES / "bm25/train_one.jsonl")
    assert len(examples) == 8 and [each.question for each in examples if "qzx" in each.question] == [
        "qzx vbn?"
    ]
    store, _ = open_dpr_json(CASES / "questions/dpr_ok.json", tmp_path)
    _, rows = BM25.build(store).search([each.question for each in examples], 3)
    found = [(row >= 0).any() for row in rows]
    assert found == ["qzx" not in each.question for each in examples]


@needs_cases
def test_whatever_else_is_there_is_read_or_refused_in_one_sentence():
    """Also what was not there when this was written."""
    for path in [*(CASES / "questions").iterdir(), *(CASES / "bm25").iterdir(), *CASES.glob("*/q.jsonl")]:
        try:
            assert read_examples(path)
        except UserError as error:
            assert "\n" not in str(error), path


# -- their kin, made here ---------------------------------------------------------------------------


def _squad_2() -> str:
    answerable = {
        "id": "1",
        "question": "q?",
        "answers": [{"text": "a", "answer_start": 0}],
        "is_impossible": False,
    }
    not_so = {"id": "2", "question": "p?", "answers": [], "is_impossible": True}
    return json.dumps(
        {"data": [{"title": "T", "paragraphs": [{"context": "a", "qas": [answerable, not_so]}]}]}
    )


def _lines(*records: dict) -> str:
    return "\n".join(map(json.dumps, records))


KIN: dict[str, tuple[str, list[tuple[str, tuple[str, ...]]]]] = {
    "squad_2.json": (_squad_2(), [("q?", ("a",))]),
    "squad_of_the_hub.jsonl": (
        _lines(
            {"id": "1", "question": "q?", "answers": {"text": ["a", "a"], "answer_start": [0, 3]}},
            {"id": "2", "question": "p?", "answers": {"text": [], "answer_start": []}},
        ),
        [("q?", ("a",))],
    ),
    "atlas.jsonl": (
        _lines(
            {"question": "q?", "answers": ["a"], "target": "a", "passages": [{"title": "T", "text": "x"}]}
        ),
        [("q?", ("a",))],
    ),
    "ragas.jsonl": (
        _lines({"question": "q?", "answer": "a model's", "contexts": ["c"], "ground_truth": "a"}),
        [("q?", ("a",))],
    ),
    "ragas_2.jsonl": (
        _lines({"user_input": "q?", "response": "a model's", "retrieved_contexts": ["c"], "reference": "a"}),
        [("q?", ("a",))],
    ),
    "a_source_beside_the_answer.jsonl": (
        _lines({"question": "q?", "answer": "a", "reference": "https://example.org"}),
        [("q?", ("a",))],
    ),
    "hotpotqa.json": (
        json.dumps(
            [{"_id": "x", "question": "q?", "answer": "a", "supporting_facts": [], "context": [["T", ["s"]]]}]
        ),
        [("q?", ("a",))],
    ),
    "triviaqa.json": (
        json.dumps({"Data": [{"Question": "q?", "Answer": {"Value": "a", "Aliases": ["a", "b"]}}]}),
        [("q?", ("a", "b"))],
    ),
    "objects.jsonl": (
        _lines({"question": "q?", "answers": [{"text": "a"}, {"text": "b"}]}),
        [("q?", ("a", "b"))],
    ),
    "numbers.jsonl": (_lines({"question": "q?", "answers": [58, 1.5]}), [("q?", ("58", "1.5"))]),
    "semicolons.csv": ('Question;Answer\n"q; r?";a|b\n', [("q; r?", ("a", "b"))]),
    "newline.csv": ('question,answer\n"q\nr?",58\n', [("q\nr?", ("58",))]),
    "lines.json": (
        _lines({"question": "q?", "answers": "a"}, {"question": "p?", "answers": "b"}),
        [("q?", ("a",)), ("p?", ("b",))],
    ),
    "array.jsonl": (json.dumps([{"question": "q?", "answers": ["a"]}]), [("q?", ("a",))]),
}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("name", KIN)
def test_their_kin(name, encoding, tmp_path):
    text, expected = KIN[name]
    (tmp_path / name).write_bytes(text.encode(encoding))
    examples = read_examples(tmp_path / name)
    assert [(each.question, each.answers) for each in examples] == expected
    assert said_form(tmp_path / name) is None or "task.format=" in str(said_form(tmp_path / name))


def test_unanswerable_ones_of_the_hub_are_counted(tmp_path, caplog):
    (tmp_path / "q.jsonl").write_text(KIN["squad_of_the_hub.jsonl"][0])
    assert len(read_examples(tmp_path / "q.jsonl")) == 1
    assert "1 of 2 questions cannot be answered and are left out" in caplog.text


@pytest.mark.parametrize("written, ids", [([7], ("7",)), ([7.0, "x"], ("7", "x")), (None, ()), ([], ())])
def test_gold_ids_as_they_are_written(written, ids, tmp_path):
    (tmp_path / "q.jsonl").write_text(
        _lines({"_id": "n1", "question": "q?", "answers": "a", "positive_ids": written})
    )
    (example,) = read_examples(tmp_path / "q.jsonl")
    assert example.positive_ids == ids and example.id == "n1"


@pytest.mark.parametrize("written", [True, [True], "7", {"id": 7}, [None], [[7]], [1.5], [float("nan")]])
def test_gold_ids_that_are_none(written, tmp_path):
    (tmp_path / "q.jsonl").write_text(_lines({"question": "q?", "answers": "a", "positive_ids": written}))
    with pytest.raises(UserError, match="line 1: positive_ids is not a list of passage ids"):
        read_examples(tmp_path / "q.jsonl")


def test_numbers_of_hundreds_of_digits_are_read_as_they_are_written(tmp_path):
    """Such an id or answer is no float, and needs not be one."""
    digits = "9" * 400
    (tmp_path / "q.jsonl").write_text(
        f'{{"question": "q?", "answers": [{digits}], "positive_ids": [{digits}]}}'
    )
    (example,) = read_examples(tmp_path / "q.jsonl")
    assert example.answers == example.positive_ids == (digits,)
    (tmp_path / "p.jsonl").write_text(f'{{"id": {digits}, "title": "", "text": "a passage"}}')
    assert [passage.id for passage in read_passages(tmp_path / "p.jsonl")] == [digits]
    (tmp_path / "t.jsonl").write_text(f'{{"title": {digits}, "text": {digits}}}')
    assert [passage.text for passage in read_passages(tmp_path / "t.jsonl")] == [digits]

"""Tasks read from files of the exact formats; what is wrong in them told in one sentence; their scores."""

import csv
import gzip
import io
import json
import lzma
import math
from pathlib import Path

import pytest

from rag.errors import UserError
from rag.tasks import records
from rag.tasks.example import Example
from rag.tasks.qa import QuestionAnswering, read_examples
from rag.tasks.records import read_records

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def real(name: str) -> Path:
    """A file of real data beside the repository; the test is skipped where there is none."""
    path = DATA / name
    if not path.exists():
        pytest.skip(f"real data: {path} is not there")
    return path


def write(path: Path, *objects) -> Path:
    path.write_text("".join(json.dumps(one, ensure_ascii=False) + "\n" for one in objects), encoding="utf-8")
    return path


def complaint(read, *arguments) -> str:
    with pytest.raises(UserError) as caught:
        list(read(*arguments))
    return str(caught.value)


MOON = {"question": "Who walked first?", "answers": ["Armstrong", "Neil Armstrong"]}
FULL = {
    "question": "Où?",
    "answers": "là",
    "positive_ids": [7, "8"],
    "hard_negative_ids": [9],
    "set": "nq",
    "id": 42,
}


# Formats


def test_json_lines(tmp_path):
    path = write(tmp_path / "q.jsonl", MOON, FULL)
    path.write_text(path.read_text(encoding="utf-8").replace("\n", "\n\n"), encoding="utf-8")
    assert read_examples(path) == [
        Example("Who walked first?", ("Armstrong", "Neil Armstrong"), id="1"),
        Example("Où?", ("là",), ("7", "8"), ("9",), "nq", "42"),
    ]
    assert read_examples(path, limit=1) == read_examples(path)[:1]


@pytest.mark.parametrize(("suffix", "pack"), [(".gz", gzip.compress), (".xz", lzma.compress)])
def test_packed_json_lines_with_a_byte_order_mark(tmp_path, suffix, pack):
    path = tmp_path / f"q.jsonl{suffix}"
    path.write_bytes(pack(b"\xef\xbb\xbf" + json.dumps(MOON).encode()))
    assert [example.question for example in read_examples(path)] == ["Who walked first?"]


def test_the_key_of_the_answers_can_be_named(tmp_path):
    path = write(tmp_path / "q.jsonl", {"question": "q", "answers_a": ["a"], "answers_b": ["b"]})
    assert read_examples(path, answers="answers_b")[0].answers == ("b",)


def test_dprs_question_files(tmp_path):
    """As Python's csv writer makes them: a list with a double quote in it is quoted, its quotes doubled."""
    rows = [
        ("who sang it", ["Linda Davis"]),
        ("what did they say", ['"Hi" they said', "it's", "tab\\t"]),
        ('the "best" film', ["x"]),
    ]
    file = io.StringIO()
    csv.writer(file, delimiter="\t").writerows((question, repr(answers)) for question, answers in rows)
    path = tmp_path / "nq-test.qa.csv"
    path.write_text(file.getvalue(), encoding="utf-8", newline="")
    assert [(example.question, list(example.answers)) for example in read_examples(path)] == rows


DPR = [
    {
        "dataset": "nq_dev_psgs_w100",
        "question": "who sings",
        "answers": ["Linda Davis", 'x {["}'],
        "positive_ctxs": [
            {"title": "T", "text": "…", "score": 1000, "title_score": 1, "passage_id": "11828866"}
        ],
        "negative_ctxs": [{"title": "N", "text": "n", "score": 0, "title_score": 0, "passage_id": "1"}],
        "hard_negative_ctxs": [{"title": "H", "text": "h", "psg_id": 5}],
    },
    {"question": "second", "answers": ["a"], "positive_ctxs": [], "hard_negative_ctxs": []},
]


@pytest.mark.parametrize("indent", [None, 4])
@pytest.mark.parametrize("chunk", [1, 64, 1 << 20])
def test_dprs_training_files_are_streamed(tmp_path, monkeypatch, indent, chunk):
    monkeypatch.setattr(records, "CHUNK", chunk)
    path = tmp_path / "biencoder-nq-dev.json"
    path.write_text(json.dumps(DPR * 3, indent=indent), encoding="utf-8")
    examples = read_examples(path)
    assert examples[0] == Example("who sings", ("Linda Davis", 'x {["}'), ("11828866",), ("5",), id="1")
    assert [example.question for example in examples] == ["who sings", "second"] * 3
    assert [record for _, record in read_records(path)] == DPR * 3
    if indent:
        lines = path.read_text(encoding="utf-8").split("\n")
        starts = [number for number, line in enumerate(lines, start=1) if line == "    {"]
        assert [place for place, _ in read_records(path)] == [f"{path}, line {start}" for start in starts]


def test_json_lines_under_the_name_json(tmp_path):
    assert len(read_examples(write(tmp_path / "q.json", MOON, FULL))) == 2


# What is wrong is told in one sentence


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"answers": ["a"]}, "{path}, line 2: no key 'question', found answers"),
        (
            {"question": "q", "answer": ["a"]},
            "{path}, line 2: no key 'answers', found question, answer: try answers=answer",
        ),
        ({}, "{path}, line 2: no key 'question', found none"),
        ({**MOON, "question": " "}, "{path}, line 2: the question is empty"),
        ({**MOON, "question": 5}, "{path}, line 2: the question is a number, a string is expected"),
        (
            {**MOON, "answers": []},
            "{path}, line 2: answers is an empty list, at least one string is expected",
        ),
        ({**MOON, "answers": None}, "{path}, line 2: answers is null, a list of strings is expected"),
        (
            {**MOON, "answers": {"a": 1}},
            "{path}, line 2: answers is an object, a list of strings is expected",
        ),
        (
            {**MOON, "answers": ["a", 1990]},
            "{path}, line 2: answers holds a number, a list of strings is expected",
        ),
        (
            {**MOON, "answers": [["a"]]},
            "{path}, line 2: answers holds a list, a list of strings is expected",
        ),
        (
            {**MOON, "answers": ["a", ""]},
            "{path}, line 2: answers holds an empty string, at least one character is expected",
        ),
        (
            {**MOON, "positive_ids": [1.5]},
            "{path}, line 2: positive_ids is not a list of passage ids (integers or strings)",
        ),
        (
            {**MOON, "hard_negative_ids": "7"},
            "{path}, line 2: hard_negative_ids is not a list of passage ids (integers or strings)",
        ),
        ({**MOON, "positive_ctxs": ["t"]}, "{path}, line 2: positive_ctxs is not a list of passages"),
        (
            {**MOON, "positive_ctxs": [{"title": "t"}]},
            "{path}, line 2: positive_ctxs is not a list of passage ids (integers or strings)",
        ),
        ([MOON], "{path}, line 2: a JSON object is expected, found a list"),
        (True, "{path}, line 2: a JSON object is expected, found true or false"),
    ],
)
def test_a_wrong_record_is_told(tmp_path, record, expected):
    path = write(tmp_path / "q.jsonl", MOON, record)
    assert complaint(read_examples, path) == expected.format(path=path)


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("q.jsonl", b"", "{path} holds no questions"),
        ("q.jsonl", b"\n \n", "{path} holds no questions"),
        ("q.json", b"", "{path} holds no questions"),
        ("q.json", b"[]", "{path} holds no questions"),
        (
            "q.jsonl",
            b'{"question": "q", "answers": ["a"]}\n{"question": \n',
            "{path}, line 2: malformed JSON (Expecting value at column 13)",
        ),
        (
            "q.jsonl",
            b'{"question": "q",\n',
            "{path}, line 1: malformed JSON (Expecting property name enclosed in double quotes at column 18)",
        ),
        ("q.jsonl", b"\n\xff\n", "{path}, line 2: not UTF-8 (invalid start byte at byte 0)"),
        (
            "q.qa.csv",
            b"q\t['a']\nq\n",
            "{path}, line 2: 1 tab-separated columns, expected a question and a list of answers",
        ),
        ("q.qa.csv", b"q\t[a]\n", "{path}, line 1: the answers are not a Python-style list: [a]"),
        ("q.qa.csv", b"q\t__import__('os')\n", None),
        ("q.qa.csv", b"q\t[]\n", "{path}, line 1: answers is an empty list, at least one string is expected"),
        ("q.qa.csv", b"\t['a']\n", "{path}, line 1: the question is empty"),
        (
            "q.qa.csv",
            b"q\t" + b"x" * 200_000,
            "{path}, line 1: not a tab-separated file (field larger than field limit (131072))",
        ),
        (
            "q.json",
            b'[\n{"question": "q", "answers": ["a"]},\n',
            "{path}, line 3: the JSON array is cut short, its ] is missing",
        ),
        (
            "q.json",
            b'[\n{"question": "q", "answers": ["a"]},\n{"question": "q", "ans',
            "{path}, line 3: malformed JSON (Unterminated string starting at)",
        ),
        (
            "q.json",
            b'[{"question": "q",\n"answers" ["a"]},' + b" " * 99,
            "{path}, line 2: malformed JSON (Expecting ':' delimiter)",
        ),
        ("q.json", b"[[1]]", "{path}, line 1: a JSON object is expected, found a list"),
    ],
)
def test_a_wrong_file_is_told(tmp_path, name, content, expected):
    path = tmp_path / name
    path.write_bytes(content)
    expected = expected or "{path}, line 1: the answers are not a Python-style list: __import__('os')"
    assert complaint(read_examples, path) == expected.format(path=path)


def test_files_that_cannot_be_read_are_told(tmp_path):
    missing = tmp_path / "none.jsonl"
    assert complaint(read_examples, missing) == f"{missing} does not exist"
    assert complaint(read_examples, tmp_path) == f"{tmp_path} is a folder, a file is expected"
    for name, pack in (("cut.jsonl.gz", gzip.compress), ("cut.jsonl.xz", lzma.compress)):
        path = tmp_path / name
        path.write_bytes(pack(json.dumps(MOON).encode() * 99)[:-20])
        assert complaint(read_examples, path).startswith(f"{path} is not a whole {path.suffix} file (")
        path.write_bytes(b"not packed at all")
        assert complaint(read_examples, path).endswith("): fetch or pack it again")


def test_a_hub_dataset_that_cannot_be_loaded_is_told():
    source = "hub://nobody/nothing/default/train"
    message = complaint(read_records, source)
    assert message.startswith(f"{source} cannot be loaded (")
    assert message.endswith("): give a file of one's own instead, or go online")
    wrong = "hub://nobody/nothing"
    assert complaint(read_records, wrong) == f"{wrong} is not of the form hub://owner/name/config/split"


# The task


def test_one_training_pair_for_each_answer(tmp_path):
    task = QuestionAnswering(train=str(write(tmp_path / "q.jsonl", MOON, FULL)))
    pairs = [(example.question, target) for example, target in task.training_pairs()]
    assert pairs == [
        ("Who walked first?", "Armstrong"),
        ("Who walked first?", "Neil Armstrong"),
        ("Où?", "là"),
    ]


def test_only_the_chosen_sets_are_trained_on_and_reported(tmp_path):
    questions = [{"question": f"q{n}", "answers": ["yes"], "set": "ab"[n % 2]} for n in range(4)]
    path = str(write(tmp_path / "q.jsonl", *questions))
    task = QuestionAnswering(train=path, dev=path, train_sets=["b"], report_sets=["a"])
    assert [example.question for example in task.examples("train")] == ["q1", "q3"]
    dev = task.examples("dev")
    assert len(dev) == 4  # all are asked, those of set a are counted
    scores = task.score(["yes", "no", "yes yes", "no"], dev)
    assert scores["em"].value == 0.5 and scores["em"].count == 2
    assert scores["f1"].value == pytest.approx((1 + 2 / 3) / 2)
    assert [math.isnan(score) for score in scores["em"].per_example] == [False, True, False, True]


def test_a_missing_split_and_an_unknown_set_are_told(tmp_path):
    path = write(tmp_path / "q.jsonl", MOON, FULL)
    task = QuestionAnswering(train=str(path), train_sets=["people", "places"])
    assert complaint(task.examples, "dev") == "the task has no dev file: give task.dev=… (it has: train)"
    assert complaint(task.examples, "train") == (
        f"{path}: no question of the sets people, places, found '', 'nq'"
    )
    assert complaint(QuestionAnswering().examples, "test") == (
        "the task has no test file: give task.test=… (it has: none)"
    )


@pytest.mark.parametrize(
    ("name", "answers", "count"),
    [
        ("wiki_open/dev.jsonl.gz", "answers", 1_408),
        ("wiki_open/squad_dev.jsonl.gz", "answers", 5_574),
        ("nq_open/dev.jsonl.gz", "answer", 3_610),
        ("world_leaders/leaders_2016_2021.jsonl.gz", "answers_2021", 271),
    ],
)
def test_real_files(name, answers, count):
    examples = read_examples(real(name), answers)
    assert len(examples) == count
    assert all(example.question and example.answers for example in examples)
    if name.startswith("wiki_open"):
        assert all(example.positive_ids for example in examples)

"""Tasks read from files of the exact formats; what is wrong in them told in one sentence; their scores."""

import csv
import gzip
import io
import json
import lzma
import math
import unicodedata
import zipfile
from pathlib import Path

import datasets
import pytest

from rag import json_files, text_files
from rag.download import __main__ as download
from rag.errors import UserError
from rag.index.passage import Passage
from rag.metrics.qa import regex_match
from rag.tasks.curated_trec import CuratedTREC, all_spellings, most_frequent_match, spellings
from rag.tasks.dialogue import Dialogue
from rag.tasks.example import Example
from rag.tasks.fever import TWO_WAY, Fever
from rag.tasks.jeopardy import JeopardyQuestions
from rag.tasks.ms_marco import MsMarco
from rag.tasks.natural_questions import NaturalQuestions
from rag.tasks.qa import OTHER_NAMES, QuestionAnswering, read_examples
from rag.tasks.records import read_records
from rag.tasks.text_to_text import TextToText
from rag.tasks.trivia_qa import TriviaQA, found_answers
from rag.tasks.web_questions import WebQuestions

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


OTHERS = f": a question file has question and answers, or {OTHER_NAMES}"
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
    monkeypatch.setattr(json_files, "_CHUNK", chunk)
    monkeypatch.setattr(text_files, "LONGEST_LINE", chunk)
    path = tmp_path / "biencoder-nq-dev.json"
    path.write_text(json.dumps(DPR * 3, indent=indent), encoding="utf-8")
    examples = read_examples(path)
    assert examples[0] == Example("who sings", ("Linda Davis", 'x {["}'), ("11828866",), ("5",), id="1")
    assert [example.question for example in examples] == ["who sings", "second"] * 3
    assert [record for _, record in read_records(path)] == DPR * 3
    if indent:
        lines = path.read_text(encoding="utf-8").split("\n")
        starts = [number for number, line in enumerate(lines, start=1) if line == "    {"]
        assert [location for location, _ in read_records(path)] == [
            f"{path}, line {start}" for start in starts
        ]


def test_json_lines_under_the_name_json(tmp_path):
    assert len(read_examples(write(tmp_path / "q.json", MOON, FULL))) == 2


# What is wrong is told in one sentence


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (
            {"answers": ["a"]},
            "{path}, line 2: no key 'question', found answers" + OTHERS,
        ),
        (
            {"question": "q", "solutions": ["a"]},
            "{path}, line 2: no key 'answers', found question, solutions: rename the key that holds the "
            "answers to 'answers'",
        ),
        (
            {},
            "{path}, line 2: no key 'question', found none" + OTHERS,
        ),
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
            {**MOON, "answers": ["a", True]},
            "{path}, line 2: answers holds true or false, a list of strings is expected",
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
            {**MOON, "positive_ctxs": [{"title": "t", "passage_id": 1.5}]},
            "{path}, line 2: positive_ctxs is not a list of passage ids (integers or strings)",
        ),
        ([MOON], "{path}, line 2: a JSON object is expected, found a list"),
        (True, "{path}, line 2: a JSON object is expected, found true or false"),
    ],
)
def test_a_wrong_record_is_told(tmp_path, record, expected):
    path = write(tmp_path / "q.jsonl", MOON, record)
    right = " (1 row like this, 1 other row is right: mend the file, or leave such rows out with task.on_bad_row=skip)"
    assert complaint(read_examples, path) == expected.format(path=path) + right


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
            "{path}, line 2: the JSON object is cut short, its }} is missing",
        ),
        (
            "q.jsonl",
            b"\n\xff\n",
            "{path}, line 2: not UTF-8 (invalid start byte): save it as UTF-8",
        ),
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
            "{path}, line 1: the answers are not a Python-style list: " + "x" * 60,
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
    sentence, _, right = complaint(read_examples, path).partition(" (1 row like this, ")
    assert sentence == expected.format(path=path)
    assert right in (
        "",
        "1 other row is right: mend the file, or leave such rows out with task.on_bad_row=skip)",
    )


def test_files_that_cannot_be_read_are_told(tmp_path):
    missing = tmp_path / "none.jsonl"
    assert complaint(read_examples, missing) == f"{missing} does not exist"
    assert complaint(read_examples, tmp_path) == f"{tmp_path} is a folder, a file is expected"
    for name, pack in (("cut.jsonl.gz", gzip.compress), ("cut.jsonl.xz", lzma.compress)):
        path = tmp_path / name
        path.write_bytes(pack(json.dumps(MOON).encode() * 99)[:-20])
        assert complaint(read_examples, path).startswith(f"{path} is damaged or was cut short after line ")
        path.write_bytes(b"not packed at all")
        assert complaint(read_examples, path).endswith("): download it again")


def test_a_hub_dataset_that_cannot_be_loaded_is_told():
    source = "hub://nobody/nothing/default/train"
    message = complaint(read_records, source)
    assert message.startswith(f"{source} cannot be loaded (")
    assert message.endswith("): give a file of one's own instead, or go online")
    wrong = "hub://nobody/nothing"
    assert complaint(read_records, wrong) == f"{wrong} is not of the form hub://owner/name/config/split"


def test_a_hub_dataset_that_is_a_script_is_told(tmp_path, monkeypatch):
    """As fever/fever is, of which there is no Parquet; "give a file; … says which data it fetches"."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fever" / "fever").mkdir(parents=True)
    (tmp_path / "fever" / "fever" / "fever.py").write_text("import datasets\n")
    source = "hub://fever/fever/v1.0/train"
    message = complaint(Fever(train=source).examples, "train")
    assert message.startswith(
        f"{source} is a loading script without data, which `datasets` no longer runs: give a file"
    )
    assert "fever" in download.SOURCES and "python -m rag.download list" in message


def test_a_hub_dataset(tmp_path, monkeypatch):
    """`datasets` takes a folder owner/name for the dataset of that name."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "google-research-datasets" / "nq_open"
    folder.mkdir(parents=True)
    write(folder / "train.jsonl", {"question": "q", "answer": ["a", "b"]})
    task = NaturalQuestions(train="hub://google-research-datasets/nq_open/default/train")
    assert task.examples("train") == [Example("q", ("a", "b"), id="1")]


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


# The paper's tasks, in the formats their files are distributed in


def test_natural_questions_of_dpr_and_nq_open(tmp_path):
    csv_path = tmp_path / "nq-test.qa.csv"
    csv_path.write_text("who got the first nobel prize in physics\t['Wilhelm Conrad Röntgen']\n", "utf-8")
    jsonl_path = write(tmp_path / "NQ-open.dev.jsonl", {"question": "q", "answer": ["a", "b"]})
    task = NaturalQuestions(train=str(jsonl_path), test=str(csv_path))
    assert task.examples("test")[0].answers == ("Wilhelm Conrad Röntgen",)
    assert [target for _, target in task.training_pairs()] == ["a", "b"]


def test_web_questions_in_the_original_format(tmp_path):
    path = tmp_path / "webquestions.examples.train.json"
    value = '(list (description "Jazmyn Bieber") (description Fauvism) (description "a \\"b\\" c"))'
    record = {"url": "u", "targetValue": value, "utterance": "what is the name of justin bieber brother?"}
    path.write_text(json.dumps([record, {"question": "q", "answers": ["a"]}]), encoding="utf-8")
    first, second = WebQuestions(train=str(path)).examples("train")
    assert first.question == "what is the name of justin bieber brother?"
    assert first.answers == ("Jazmyn Bieber", "Fauvism", 'a "b" c')
    assert second.answers == ("a",)
    path = write(tmp_path / "w.jsonl", {"targetValue": "(list)", "utterance": "q"})
    expected = f"{path}, line 1: targetValue holds no (description …): (list)"
    assert complaint(WebQuestions(train=str(path)).examples, "train") == expected


TRIVIA = {
    "Data": [
        {
            "Question": "Which city does David Soul come from?",
            "QuestionId": "tc_3",
            "Answer": {
                "Value": "Chicago",
                "Aliases": ["Chi-Town", "Chicago", "Chicago, Illinois"],
                "NormalizedAliases": ["chi town"],
                "Type": "WikipediaEntity",
            },
            "EntityPages": [],
        }
    ],
    "Domain": "Web",
    "Version": 1.0,
}


def test_trivia_qa_in_the_original_and_the_hubs_format(tmp_path):
    path = tmp_path / "unfiltered-web-dev.json"
    path.write_text(json.dumps(TRIVIA, indent=4), encoding="utf-8")
    hub = {
        "question": "Which city does David Soul come from?",
        "question_id": "tc_3",
        "answer": {"value": "Chicago", "aliases": ["Chi-Town", "Chicago", "Chicago, Illinois"]},
    }
    for source in (path, write(tmp_path / "hub.jsonl", hub)):
        assert TriviaQA(dev=str(source)).examples("dev") == [
            Example(
                "Which city does David Soul come from?",
                ("Chicago", "Chi-Town", "Chicago, Illinois"),
                id="tc_3",
            )
        ]


def test_trivia_qa_in_dprs_training_form(tmp_path):
    path = tmp_path / "biencoder-trivia-train.json"
    path.write_text(json.dumps(DPR, indent=4), encoding="utf-8")
    assert [one.question for one in TriviaQA(train=str(path)).examples("train")] == ["who sings", "second"]


def test_trivia_qas_hidden_test_answers_are_no_answers(tmp_path):
    path = tmp_path / "wikipedia-test-without-answers.json"
    path.write_text(json.dumps({"Data": [{"Question": "q", "QuestionId": "1"}]}), encoding="utf-8")
    hidden = {"question": "q", "question_id": "1", "answer": {"value": "<unk>", "aliases": []}}
    for source in (path, write(tmp_path / "hub.jsonl", hidden)):
        task = TriviaQA(test=str(source))
        examples = task.examples("test")
        assert examples == [Example("q", (), id="1")]
        assert task.score(["x"], examples)["em"].count == 0


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"Version": 1}, "{path}, line 1: no key 'question', found Version"),
        ({"Data": 5}, "{path}, line 1: no key 'question', found Data"),
        ({"Data": [5]}, "{path}, line 1: no key 'question', found Data"),
        ({"Data": [{"Question": "q"}]}, "{path}, line 1: no key 'QuestionId', found Question"),
        (
            {"Data": [{"Question": "q", "QuestionId": "1", "Answer": ["a"]}]},
            "{path}, line 1: Answer is a list, an object is expected",
        ),
        ([], "{path} holds no questions"),
        (5, "{path}, line 1: a JSON object is expected, found a number"),
    ],
)
def test_a_wrong_trivia_qa_file_is_told(tmp_path, content, expected):
    path = tmp_path / "t.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    assert complaint(TriviaQA(train=str(path)).examples, "train").startswith(expected.format(path=path))


def test_trivia_qas_targets_are_the_answers_that_were_retrieved():
    texts = ["He lived in Chi-Town, they say.", "Chicagoland is wider."]
    assert found_answers(("Chicago", "Chi-Town", "chi"), texts) == ("Chi-Town", "chi")
    assert TriviaQA().targets(Example("q", ("Chicago", "Chi-Town")), texts) == ("Chi-Town",)
    assert (
        TriviaQA().targets(Example("q", ("Rome",)), texts)
        == ()
        == TriviaQA().targets_without(Example("q", ("R",)))
    )


def test_curated_trec_is_judged_by_its_expressions(tmp_path):
    path = tmp_path / "curatedtrec-test.qa.csv"
    path.write_text("When is Fashion week in NYC?\t['Sept?(ember)?|Feb(ruary)?']\n", encoding="utf-8")
    task = CuratedTREC(test=str(path))
    assert task.score(["september"], task.examples("test"))["em"].value == 1.0
    scores = task.score(["in May"], task.examples("test"))
    assert set(scores) == {"em"} and scores["em"].value == 0.0
    path = write(tmp_path / "t.jsonl", {"question": "q", "answer": ["a", "b(c"]})
    message = complaint(CuratedTREC(test=str(path)).examples, "test")
    assert message.startswith(f"{path}, line 1: the answer 'b(c' is not a regular expression (")


def test_curated_trecs_target_is_the_most_frequent_match():
    passages = ["In September it rains, in Sept. too.", "Sept. and FEB"]
    example = Example("q", ("Sept?(ember)?|Feb(ruary)?",))
    assert CuratedTREC().targets(example, passages) == ("Sept",)
    assert CuratedTREC().targets(example, ["May"]) == ()
    assert CuratedTREC().targets_without(example)[:2] == ("September", "Sept")
    decomposed = unicodedata.normalize("NFD", "em São Paulo, São Paulo")
    assert most_frequent_match(["São Paul."], [decomposed]) == "São Paulo"
    assert most_frequent_match(["x*"], ["aaa"]) is None  # an expression that matches nothing at all


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("Long Island|New\\s?York", ["Long Island", "New York", "NewYork"]),
        ("Sept?(ember)?", ["September", "Sept", "Sepember", "Sep"]),
        ("19(7|8)0", ["1970", "1980"]),
        ("19[78]0", ["1970", "1980"]),
        ("\\bfour.*score$", ["four score"]),
        ("(?:a|b){2}", ["aa", "bb"]),
        ("[0-9]+ feet", ["feet"]),
        ("a(?=b)\\.", ["a."]),
        ("[^a]", []),
    ],
)
def test_what_an_expression_spells_out(pattern, expected):
    assert spellings(pattern) == expected
    assert all_spellings([pattern, pattern]) == tuple(expected)


def test_an_expression_spells_out_no_more_than_the_limit():
    assert len(spellings("(a|b)(c|d)(e|f)" * 20)) == 64


def test_curated_trec_on_real_questions():
    examples = CuratedTREC(train=str(real("curated_trec/train.jsonl.gz")), answers="answer_regex").examples(
        "train"
    )
    assert len(examples) == 1758
    spelt = [all_spellings(example.answers) for example in examples]
    matching = sum(
        any(regex_match([one], [example.answers])[0] for one in some)
        for some, example in zip(spelt, examples, strict=True)
    )
    assert all(spelt)
    assert matching > 0.9 * len(examples)  # most spellings match the expression that spelt them


MARCO = {
    "answers": {"12": ["Yes"], "15": ["No Answer Present."], "9": ["a corporation is a company"]},
    "passages": {"12": [], "15": [], "9": []},
    "query": {"12": "is it", "15": "what is that", "9": ". what is a corporation?"},
    "query_id": {"12": 1102431, "15": 1102432, "9": 1102433},
    "query_type": {"12": "NUMERIC", "15": "ENTITY", "9": "DESCRIPTION"},
    "wellFormedAnswers": {"12": ["Yes, it is.", "It is."], "15": "[]", "9": []},
}


def test_ms_marco_keeps_questions_with_well_formed_answers(tmp_path):
    path = tmp_path / "dev_v2.1.json"
    path.write_text(json.dumps(MARCO), encoding="utf-8")
    rows = [{key: column[row] for key, column in MARCO.items()} for row in ("12", "15", "9")]
    for source in (path, write(tmp_path / "dev.jsonl", *rows)):
        task = MsMarco(dev=str(source))
        assert task.examples("dev") == [Example("is it", ("Yes, it is.", "It is."), id="1102431")]
        scores = task.score(["It is."], task.examples("dev"))
        assert {name: metric.value for name, metric in scores.items()} == {
            "bleu_1": pytest.approx(1.0),
            "rouge_l": 1.0,
            "distinct_trigrams": pytest.approx(math.nan, nan_ok=True),
            "distinct_trigrams_gold": 1.0,  # "Yes, it is.", one trigram
        }


def test_ms_marcos_eval_set_has_no_answers_and_wrong_files_are_told(tmp_path):
    path = tmp_path / "eval.json"
    path.write_text(json.dumps({"query": {"1": "q"}, "query_id": {"1": 7}}), encoding="utf-8")
    assert MsMarco(test=str(path)).examples("test") == [Example("q", (), id="7")]
    # the hub's test has all columns, and empty lists where the answers are hidden
    hidden = {"query": "q", "query_id": 7, "answers": [], "wellFormedAnswers": []}
    assert MsMarco(test=str(write(tmp_path / "hub.jsonl", hidden))).examples("test") == [
        Example("q", (), id="7")
    ]
    path.write_text(json.dumps({"query": {"1": "q"}, "query_id": {"2": 7}}), encoding="utf-8")
    expected = f"{path}: query_id and query do not have the same rows"
    assert complaint(MsMarco(test=str(path)).examples, "test") == expected
    path.write_text(json.dumps({"query": ["q"]}), encoding="utf-8")
    expected = f"{path}: query is a list, an object from row to value is expected"
    assert complaint(MsMarco(test=str(path)).examples, "test") == expected


CLUE = {
    "category": "HISTORY",
    "air_date": "2004-12-31",
    "question": "'For the last 8 years of his life, <i>Galileo</i> was under house arrest\\'s &amp; watch'",
    "value": "$200",
    "answer": "Copernicus",
    "round": "Jeopardy!",
    "show_number": "4680",
}


def test_jeopardy_clues_of_all_forms(tmp_path):
    expected = "For the last 8 years of his life, Galileo was under house arrest's & watch"
    array = tmp_path / "JEOPARDY_QUESTIONS1.json"
    picture = {"answer": "the sea", "question": "'<a href=\"x.jpg\"></a>'"}
    array.write_text(json.dumps([CLUE, picture]), encoding="utf-8")
    folder = tmp_path / "train"
    folder.mkdir()
    (folder / "00001.json").write_text(json.dumps({**CLUE, "search_results": []}), encoding="utf-8")
    packed = tmp_path / "train.zip"  # as SearchQA's archive holds them
    with zipfile.ZipFile(packed, "w") as archive:
        archive.write(folder / "00001.json", "train/00001.json")
        archive.writestr("__MACOSX/train/._00001.json", b"\x00")
    for source in (array, folder, packed):
        (example,) = JeopardyQuestions(train=str(source)).examples("train")
        assert (example.question, example.answers) == ("Copernicus", (expected,))
    task = JeopardyQuestions(
        dev=str(write(tmp_path / "j.jsonl", {"answer": "a", "clue": "Who is this man?"}))
    )
    scores = task.score(["Who is this man?"], task.examples("dev"))
    assert scores["bleu_1"].value == pytest.approx(1.0)
    # it agrees with itself in relevant words, type and stop words, and has no entity
    assert scores["q_bleu_1"].value == pytest.approx(0.66 * (0.36 + 0.20 + 0.03) + 0.34)
    empty = tmp_path / "empty"
    empty.mkdir()
    message = complaint(JeopardyQuestions(train=str(empty)).examples, "train")
    assert message == f"{empty} holds no *.json files"
    packed.write_bytes(packed.read_bytes()[:-30])
    message = complaint(JeopardyQuestions(train=str(packed)).examples, "train")
    assert message.startswith(f"{packed} is not a whole .zip file (")


def test_fever_in_the_original_format(tmp_path):
    path = write(
        tmp_path / "paper_dev.jsonl",
        {
            "id": 1,
            "verifiable": "VERIFIABLE",
            "label": "SUPPORTS",
            "claim": "Savages was a film.",
            "evidence": [
                [[10, 11, "Savages_-LRB-2012_film-RRB-", 3], [10, 12, "Oliver_Stone", 0]],
                [[13, 14, "Oliver_Stone", 5]],
            ],
        },
        {"id": 2, "label": "NOT ENOUGH INFO", "claim": "He sleeps.", "evidence": [[[9, None, None, None]]]},
        {"id": 3, "label": "REFUTES", "claim": "She sleeps.", "evidence": ["Sleep"]},
    )
    three = Fever(dev=str(path))
    examples = three.examples("dev")
    assert [example.answers for example in examples] == [("true",), ("unknown",), ("false",)]
    assert [example.titles for example in examples] == [
        ("Savages (2012 film)", "Oliver Stone"),
        (),
        ("Sleep",),
    ]
    assert three.score(["true", "true", "false"], examples)["accuracy"].value == pytest.approx(2 / 3)
    right = [three.right_passages(example) for example in examples]
    assert [set(one) for one in right] == [{"title_hit"}, set(), {"title_hit"}]  # the second has no evidence
    titles = [Passage("7", "Savages (2012 film)", "…"), Passage("8", "Savages", "Oliver Stone")]
    assert [right[0]["title_hit"](one) for one in titles] == [True, False]
    two = Fever(dev=str(path), labels=TWO_WAY, skip=["NOT ENOUGH INFO"])
    assert [example.id for example in two.examples("dev")] == ["1", "3"]
    assert two.classes == ["true", "false"]


def test_an_unknown_label_and_wrong_evidence_are_told(tmp_path):
    path = write(tmp_path / "f.jsonl", {"claim": "c", "label": "MAYBE"})
    assert complaint(Fever(dev=str(path)).examples, "dev") == (
        f"{path}, line 1: unknown label 'MAYBE', expected one of SUPPORTS, REFUTES, NOT ENOUGH INFO"
    )
    path = write(tmp_path / "f.jsonl", {"claim": "c", "label": "REFUTES", "evidence": [5]})
    assert complaint(Fever(dev=str(path)).examples, "dev") == (
        f"{path}, line 1: evidence is not made of [annotation, evidence, page, sentence]"
    )


def test_fever_on_real_claims():
    examples = Fever(dev=str(real("fever/fever_dev.jsonl.gz"))).examples("dev")
    assert len(examples) == 9999
    for example in examples:
        assert bool(example.titles) == (example.answers != ("unknown",))


def test_text_to_text_with_keys_of_ones_own(tmp_path):
    path = write(tmp_path / "t.jsonl", {"text": "long", "summary": ["short", "brief"], "id": "x"})
    task = TextToText(train=str(path), source="text", target="summary")
    assert task.examples("train") == [Example("long", ("short", "brief"), id="x")]
    assert [target for _, target in task.training_pairs()] == ["short", "brief"]
    assert complaint(TextToText(train=str(path)).examples, "train") == (
        f"{path}, line 1: no key 'input', found text, summary, id"
    )


def test_examples_without_answers_are_not_judged():
    scores = TextToText().score(["a b c", "x"], [Example("q", ("a b c",)), Example("q", ())])
    assert scores["rouge_l"].count == 1 and math.isnan(scores["rouge_l"].per_example[1])
    assert scores["bleu_1"].value == pytest.approx(1.0)


def test_dialogue_of_the_wizard_of_wikipedia(tmp_path):
    path = tmp_path / "valid_random_split.json"
    conversation = {
        "chosen_topic": "Gardening",
        "persona": "i like gardening.",
        "wizard_eval": 5,
        "dialog": [
            {
                "speaker": "0_Apprentice",
                "text": "I like Gardening, even when I do not.",
                "retrieved_topics": [],
            },
            {"speaker": "1_Wizard", "text": "I live on a farm.", "checked_sentence": {}},
            {"speaker": "0_Apprentice", "text": "Nice."},
            {"speaker": "1_Wizard", "text": "Gardening is cultivation."},
        ],
        "chosen_topic_passage": ["Gardening is the practice of growing plants."],
    }
    path.write_text(json.dumps([conversation]), encoding="utf-8")
    first, second = Dialogue(dev=str(path)).examples("dev")
    assert first == Example(
        "Gardening\nI like Gardening, even when I do not.", ("I live on a farm.",), id="1-2"
    )
    assert second.question.endswith("\nI live on a farm.\nNice.")
    (_, short) = Dialogue(dev=str(path), turns=1, separator=" | ").examples("dev")
    assert short.question == "Gardening | Nice."
    from_file = Dialogue(
        dev=str(write(tmp_path / "d.jsonl", {"history": ["Hi.", "Hello."], "reply": "Bye."}))
    )
    assert from_file.examples("dev") == [Example("Hi.\nHello.", ("Bye.",), id="1")]
    scores = from_file.score(["bye"], from_file.examples("dev"))
    assert scores["f1"].value == 1.0
    assert set(scores) == {"f1", "bleu_1", "rouge_l", "distinct_trigrams", "distinct_trigrams_gold"}

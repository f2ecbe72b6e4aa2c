"""Question files as other tools write them: each is read, or refused in one sentence that says what is read."""

import csv
import gzip
import io
import json
import logging
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import tiny_bart, word_tokenizer
from hydra.utils import instantiate

from rag.compose import compose_config
from rag.errors import UserError
from rag.generators.seq2seq import Generator
from rag.model import ClosedBook, RagSequence
from rag.tasks.dpr_json import open_dpr_json
from rag.tasks.qa import QuestionAnswering, read_examples
from rag.tasks.records import FORMS
from rag.tasks.text_to_text import TextToText
from rag.training.datamodule import RagDataModule

CASES = Path(__file__).resolve().parents[2] / "shared" / "cases" / "questions"

MILK, HOSE = "who sells the milk can?", "where is the garden hose sold?"
QUESTIONS = [(MILK, ("Pia Roth",)), (HOSE, ("Dresden", "dresden"))]


def lines(*records: dict) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def table(separator: str, *rows: tuple) -> str:
    out = io.StringIO()
    csv.writer(out, delimiter=separator).writerows(rows)
    return out.getvalue()


def ctx(**more) -> dict:
    return {"title": "T", "text": "Pia Roth sells the milk can."} | more


def kilt(*answers: str) -> list[dict]:
    provenance = [{"wikipedia_id": "1", "title": "T"}]
    return [*({"answer": one, "provenance": provenance} for one in answers), {"provenance": provenance}]


SQUAD = {
    "version": "v2.0",
    "data": [
        {
            "title": "Shop",
            "paragraphs": [
                {
                    "context": "Pia Roth sells it. Dresden has it.",
                    "qas": [
                        {
                            "id": "q1",
                            "question": MILK,
                            "answers": [{"text": "Pia Roth", "answer_start": 0}] * 2,
                            "is_impossible": False,
                        },
                        {"id": "q2", "question": "what?", "answers": [], "is_impossible": True},
                    ],
                },
                {
                    "context": "Dresden",
                    "qas": [
                        {"id": "q3", "question": HOSE, "answers": [{"text": "Dresden"}, {"text": "dresden"}]}
                    ],
                },
            ],
        }
    ],
}
BOTH = [
    {"question": question, "answers": list(answers), "positive_ctxs": [ctx()], "negative_ctxs": []}
    for question, answers in QUESTIONS
]
READ = {
    "nq_open.jsonl": lines(
        {"question": MILK, "answer": ["Pia Roth"]}, {"question": HOSE, "answer": ["Dresden", "dresden"]}
    ),
    "flashrag.jsonl": lines(
        *({"question": q, "golden_answers": list(a), "metadata": {}} for q, a in QUESTIONS)
    ),
    "kilt.jsonl": lines(*({"id": "7", "input": q, "output": kilt(*a)} for q, a in QUESTIONS)),
    "capitals.jsonl": lines(*({"Question": q, "Answer": list(a)} for q, a in QUESTIONS)),
    "hub_squad.jsonl": lines(
        *({"question": q, "answers": {"text": [*a, a[0]], "answer_start": [0]}} for q, a in QUESTIONS)
    ),
    "array.jsonl": json.dumps(BOTH),  # an array in spite of the name
    "fid.json": json.dumps(
        [
            {"id": "0", "question": q, "target": a[0], "answers": list(a), "ctxs": [ctx(id="16")]}
            for q, a in QUESTIONS
        ]
    ),
    "mrqa.jsonl": lines(
        {"header": {"dataset": "x", "split": "dev"}},
        *({"context": "c", "qas": [{"qid": "1", "question": q, "answers": list(a)}]} for q, a in QUESTIONS),
    ),
    "triviaqa.json": json.dumps(
        {
            "Data": [
                {"Question": q, "QuestionId": "1", "Answer": {"Value": a[0], "Aliases": list(a)}}
                for q, a in QUESTIONS
            ]
        },
        indent=4,
    ),
    "msmarco.jsonl": lines(*({"query_id": 1, "query": q, "answers": list(a)} for q, a in QUESTIONS)),
    "one_object_over_lines": json.dumps(SQUAD, indent=4),
    "squad.json": json.dumps(SQUAD),
    "squad_indented.json": json.dumps(SQUAD, indent=2),
    "dpr_without_ids.json": json.dumps(BOTH),
    "DPR.QA.CSV": table("\t", *((q, repr(list(a))) for q, a in QUESTIONS)),
    "json_lists.qa.csv": table("\t", *((q, json.dumps(list(a))) for q, a in QUESTIONS)),
    "header.csv": table(",", ("question", "answers"), *((q, repr(list(a))) for q, a in QUESTIONS)),
    "header.tsv": table(
        "\t", ("id", "Question", "Answers"), *(("1", q, json.dumps(list(a))) for q, a in QUESTIONS)
    ),
    "semicolons.csv": "\n\n"
    + table(";", ("question", "answers"), *((q, repr(list(a))) for q, a in QUESTIONS)),
    "mac.csv": table(",", ("question", "answers"), *((q, repr(list(a))) for q, a in QUESTIONS)).replace(
        "\r\n", "\r"
    ),
    "mac.jsonl": lines(*BOTH).replace("\n", "\r"),
    "crlf_bom.jsonl": "\ufeff" + lines(*BOTH).replace("\n", "\r\n"),
    "no_suffix": lines(*BOTH),
}


@pytest.mark.parametrize("name", READ)
def test_files_of_other_tools_are_read(tmp_path, name):
    path = tmp_path / name
    path.write_text(READ[name], encoding="utf-8", newline="")
    assert [(one.question, one.answers) for one in read_examples(path)] == QUESTIONS
    packed = tmp_path / f"{name}.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert read_examples(packed) == read_examples(path)


def test_tables_of_plain_answers(tmp_path):
    """One answer a question, as text; quotes and brackets in it are its own."""
    plain = [(MILK, 'Pia "the shop" Roth'), ("a, b or c?", "[sic] c"), ("what year?", "1999")]
    for name, separator, header in (
        ("a.csv", ",", [("question", "answer")]),
        ("b.tsv", "\t", []),
        ("c.csv", ";", [("answer", "question")]),
    ):
        rows = [row[::-1] if header and header[0][0] == "answer" else row for row in plain]
        (tmp_path / name).write_text(table(separator, *header, *rows), encoding="utf-8", newline="")
        assert [(one.question, *one.answers) for one in read_examples(tmp_path / name)] == plain


def test_columns_of_passages_and_of_other_tasks(tmp_path):
    path = tmp_path / "q.csv"
    path.write_text(
        table(",", ("question", "answers", "positive_ids"), (MILK, "Pia", "['16', '4']"), (HOSE, "D", "[7]"))
    )
    assert [one.positive_ids for one in read_examples(path)] == [("16", "4"), ("7",)]
    path.write_text(table(",", ("input", "target"), ("in", "out")))
    assert [(one.question, one.answers) for one in TextToText(dev=str(path)).examples("dev")] == [
        ("in", ("out",))
    ]


def test_a_field_longer_than_csvs_own_limit(tmp_path):
    path = tmp_path / "q.tsv"
    path.write_text(f"{MILK}\t{'x' * 200_000}\n")
    assert len(read_examples(path)[0].answers[0]) == 200_000


def test_two_files_side_by_side(tmp_path):
    source, target = tmp_path / "val.source", tmp_path / "val.target"
    source.write_text(f"{MILK}\n{HOSE}\n")
    target.write_text("Pia Roth\nDresden\n")
    assert [(one.question, one.answers) for one in read_examples(source)] == [
        (MILK, ("Pia Roth",)),
        (HOSE, ("Dresden",)),
    ]
    target.write_text("Pia Roth\n")
    assert refusal(source) == f"{source}, line 2: val.target has fewer lines: both need one line per question"
    target.write_text("Pia Roth\n\n")
    assert refusal(source).startswith(
        f"{source}, line 2: answers holds an empty string, at least one character is expected (1 row like this, 1 "
    )
    target.unlink()
    assert (
        refusal(source)
        == f"{source} has no val.target beside it, whose lines are the answers to its own: add it"
    )


def test_parquet(tmp_path):
    path = tmp_path / "q.parquet"
    pq.write_table(
        pa.table({"question": [MILK, HOSE], "answer": [["Pia Roth"], ["Dresden", "dresden"]]}), path
    )
    assert [(one.question, one.answers) for one in read_examples(path)] == QUESTIONS
    path.write_bytes(path.read_bytes()[:-20])
    assert refusal(path).startswith(f"{path} is not a whole Parquet file (")


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        read_examples(path)
    sentence = str(caught.value)
    assert "\n" not in sentence
    return sentence


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("q.txt", f"{MILK}\n", "{path} is not in a supported format; supported: {forms}"),
        ("q.target", "Pia Roth\n", "{path} is not in a supported format; supported: {forms}"),
        ("q.xlsx", "PK", "{path} is not in a supported format; supported: {forms}"),
        (
            "q.jsonl",
            '{"question": "who?", "answers": null}\n',
            "{path}, line 1: answers is null, a list of strings",
        ),
        ("q.jsonl", '{"question": "who?", "answers": []}\n', "{path}, line 1: answers is an empty list"),
        (
            "q.json",
            '{\n "question": "who?",\n "answers" []}',
            "{path}, line 3: malformed JSON (a colon is missing after the key 'answers')",
        ),
        ("q.json", '{\n "data": [1]}', "{path}, line 1: no key 'question', found data"),
        (
            "q.json",
            '{"data": [{"paragraphs": 3}]}',
            "{path}, line 1: paragraphs is a number, a list of objects is expected",
        ),
        (
            "q.csv",
            "question,answer\nwho, or what?,Pia\n",
            "{path}, line 2: 3 comma-separated columns, the header has 2 (question, answer); a field that holds a "
            "comma belongs in double quotes",
        ),
        (
            "q.jsonl",
            '{"_id": "1", "text": "who?"}\n',
            "{path}, line 1: no key 'question', found _id, text: a question file",
        ),
        ("q.csv", "who?,['a'\n", "{path}, line 1: the answers are not a Python-style list: ['a'"),
        ("q.csv", "who?,['a']\nwho?,a\n", "{path}, line 2: the answers are not a Python-style list: a"),
        (
            "q.csv",
            "just a sentence\n",
            "{path}, line 1: 1 comma-separated columns, expected a question and a list",
        ),
        ("q.jsonl", "[" * 100_000, "{path}, line 1: malformed JSON ("),
        (
            "q.jsonl",
            '{"question": ' + "9" * 5000 + "}\n",
            "{path}, line 1: malformed JSON (Exceeds the limit",
        ),
    ],
)
def test_what_cannot_be_read_is_told(tmp_path, name, content, sentence):
    path = tmp_path / name
    path.write_text(content)
    assert refusal(path).startswith(sentence.format(path=path, forms=FORMS))


def test_the_advice_on_columns_and_quotes_works(tmp_path):
    path = tmp_path / "q.csv"
    path.write_text('question,answer\n"who, or what?",Pia\n')
    assert read_examples(path)[0].question == "who, or what?"


@pytest.mark.parametrize(
    ("content", "questions"),
    [
        ('a\tb\n"""who"\tPia\nwhat\tx\n', ["a", '"who', "what"]),
        ('a\tb\n"who\tPia\nwhat\tx\n', ["a", '"who', "what"]),
        ('"a\tb\nc"\td\n', ['"a', 'c"']),  # would be one row by the rule
        ('question\tanswer\n"a\nb"\td\n', ["a\nb"]),  # is meant as one
    ],
)
def test_a_quote_in_a_tsv_swallows_no_rows(tmp_path, content, questions):
    path = tmp_path / "q.tsv"
    path.write_text(content)
    assert [one.question for one in read_examples(path)] == questions


ONE = '{"question": "q", "answers": ["a"]}'


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (f"[{ONE}][{ONE}]", "line 1: malformed JSON ('[' after the end of the array"),
        (f"[{ONE}]\n[{ONE}]", "line 2: malformed JSON ('[' after the end of the array"),
        (f"[{ONE}]\n{ONE}", "line 2: malformed JSON ('{' after the end of the array"),
        (f"[{ONE}] rubbish", "line 1: malformed JSON ('r' after the end of the array"),
        (f"[{ONE}\n{ONE}]", "line 2: malformed JSON (a comma is missing between two objects of the array)"),
        (f"[{ONE},,{ONE}]", "line 1: malformed JSON (Expecting value)"),
        (f"[{ONE},]", "line 1: malformed JSON (a comma before the ] of the array)"),
        (f"[,{ONE}]", "line 1: malformed JSON (Expecting value)"),
        (f"[{ONE}", "line 1: the JSON array is cut short, its ] is missing"),
        (f'{{"data": [{ONE}],\n}}', "line 2: malformed JSON (a comma before the } of an object)"),
        (f'{{"data":\n[{ONE}]', "line 2: the JSON object is cut short, its } is missing"),
        (f'{{"data":\n[{ONE}] "x": 1}}', "line 2: malformed JSON (a comma is missing between two keys"),
        (f'{{"data":\n[{ONE}]}} x', "line 2: malformed JSON (an object is expected)"),
    ],
)
def test_nothing_of_an_array_is_passed_over(tmp_path, content, problem):
    path = tmp_path / "q.json"
    path.write_text(content)
    assert refusal(path).startswith(f"{path}, {problem}")


def test_bad_rows_are_named_and_can_be_left_out(tmp_path, caplog):
    path = tmp_path / "q.jsonl"
    path.write_text(f'{ONE}\n{{"question": \n{ONE}\n{{"question": "q"}}\n{ONE}\n')
    with pytest.raises(UserError) as caught:
        QuestionAnswering(str(path)).examples("train")
    assert str(caught.value) == (
        f"{path}, line 2: malformed JSON (Expecting value at column 13) (2 rows like this, 3 other rows are right: "
        "mend the file, or leave such rows out with task.on_bad_row=skip)"
    )
    assert len(QuestionAnswering(str(path), on_bad_row="skip").examples("train")) == 3
    assert caplog.messages == [
        f"2 rows left out of 5; the first: {path}, line 2: malformed JSON (Expecting value at column 13)"
    ]
    table = tmp_path / "q.csv"
    table.write_text("question,answers\nq,a\nq,a,b\nq,a|b\n")
    assert "line 3: 3 comma-separated columns" in refusal(table)
    examples = QuestionAnswering(str(table), on_bad_row="skip").examples("train")
    assert [one.answers for one in examples] == [("a",), ("a", "b")]
    with pytest.raises(UserError, match="task.on_bad_row=ignore does not exist: there is stop and skip"):
        QuestionAnswering(str(table), on_bad_row="ignore")
    path.write_text('{"question": "q"}\n')  # where nothing is right, nothing is left to skip
    with pytest.raises(UserError, match="line 1: no key 'answers'"):
        QuestionAnswering(str(path), on_bad_row="skip").examples("train")


def test_the_form_is_said_and_can_be_chosen(tmp_path, capsys):
    path = tmp_path / "q.txt"
    path.write_text(f"{MILK}\tPia Roth\n")
    task = QuestionAnswering(str(path), format="tsv")
    for _ in range(2):
        assert task.examples("train")[0].answers == ("Pia Roth",)
    assert capsys.readouterr().out == f"{path}: read as a table (task.format=tsv)\n"
    with pytest.raises(UserError, match="task.format=xml does not exist: there is datasets, beir, source"):
        QuestionAnswering(str(path), format="xml").examples("train")
    path = tmp_path / "kilt.jsonl"
    path.write_text(READ["kilt.jsonl"])
    QuestionAnswering(str(path)).examples("train")
    assert capsys.readouterr().out == f"{path}: read as KILT's JSON (task.format=kilt)\n"
    path.write_text(lines(*BOTH).replace("positive_ctxs", "x"))
    QuestionAnswering(str(path)).examples("train")
    assert capsys.readouterr().out == ""


def test_answers_may_be_numbers(tmp_path):
    path = tmp_path / "q.jsonl"
    path.write_text(
        lines({"question": "q", "answers": [1912, 3.5, "x", 7.0]}, {"question": "q", "answer": 7})
    )
    assert [one.answers for one in read_examples(path)] == [("1912", "3.5", "x", "7"), ("7",)]


def test_the_encoding_that_is_advised_works(tmp_path):
    path = tmp_path / "q.csv"
    path.write_bytes("question,answer\nGrüße?,ja\n".encode("latin-1"))
    with pytest.raises(UserError, match="line 2: not UTF-8 .*: give task.encoding= .*task.encoding=latin-1"):
        QuestionAnswering(str(path)).examples("train")
    assert QuestionAnswering(str(path), encoding="latin-1").examples("train")[0].question == "Grüße?"
    path.write_bytes("question,answer\nGrüße?,ja\n".encode("utf-16"))
    assert read_examples(path)[0].question == "Grüße?"


def test_beirs_questions_have_passages_and_no_answers(tmp_path):
    (tmp_path / "qrels").mkdir()
    (tmp_path / "queries.jsonl").write_text(
        lines({"_id": "1", "text": "who?"}, {"_id": "2", "text": "what?"}, {"_id": "3", "text": "where?"})
    )
    qrels = tmp_path / "qrels" / "test.tsv"
    qrels.write_text("query-id\tcorpus-id\tscore\n3\tdoc\t1\n1\ta b\t2\n1\tno\t0\n1\tc\t1\n")
    assert [(one.id, one.question, one.answers, one.positive_ids) for one in read_examples(qrels)] == [
        ("1", "who?", (), ("a b", "c")),
        ("3", "where?", (), ("doc",)),
    ]
    qrels.write_text("query-id\tcorpus-id\tscore\n3\tdoc\n")
    assert refusal(qrels) == f"{qrels}, line 2: expected query-id, corpus-id and a whole number as score"


def test_a_folder_of_datasets(tmp_path):
    from datasets import Dataset, DatasetDict

    rows = Dataset.from_dict({"question": [MILK, HOSE], "answers": [["Pia Roth"], ["Dresden", "dresden"]]})
    rows.save_to_disk(str(tmp_path / "one"))
    assert [(one.question, one.answers) for one in read_examples(tmp_path / "one")] == QUESTIONS
    DatasetDict(dev=rows).save_to_disk(str(tmp_path / "several"))
    assert refusal(tmp_path / "several") == (
        f"{tmp_path}/several holds several splits: give one of them: {tmp_path}/several/dev"
    )
    assert len(read_examples(tmp_path / "several" / "dev")) == 2
    (tmp_path / "one" / "state.json").write_text("[]")
    assert "is not a whole folder of `datasets`" in refusal(tmp_path / "one")


@pytest.mark.parametrize(
    "file", sorted(CASES.iterdir()) if CASES.is_dir() else [None], ids=lambda f: f and f.name
)
def test_files_of_others_where_they_are_at_hand(file):
    """Each is read with the question it holds, or refused in one sentence with its place and what is read."""
    if file is None:
        pytest.skip(f"no question files of others at {CASES}")
    try:
        examples = read_examples(file)
    except UserError as error:
        assert str(error).startswith(str(file)) and "\n" not in str(error)
        assert "line 1" in str(error) or FORMS in str(error)
        assert file.suffix in (".txt", ".target") or file.stem[:2] in ("19", "27")
        return
    for one in examples:
        (one.question + "".join(one.answers)).encode()
        assert one.question.strip() and all(one.answers)
    assert examples[0].answers and not one.question.startswith(("question", "{", "["))


@pytest.mark.parametrize(
    "name", ["dpr_dev.json", "dpr_lines.jsonl", "dpr_minimal.json", "dpr_nohard.json", "dpr_noids.json"]
)
def test_dprs_training_files_of_others(tmp_path, name):
    """With and without ids, negatives and the enclosing array: passages and positives come along."""
    if not (CASES / name).is_file():
        pytest.skip(f"no question files of others at {CASES}")
    store, asked = open_dpr_json(CASES / name, tmp_path)
    assert len(asked) == len(read_examples(CASES / name)) and len(store)
    assert all(len(one.positives) for one in asked)


@pytest.mark.parametrize(
    "left_out", ["passage_id", "negative_ctxs", "hard_negative_ctxs", "answers", "title"]
)
def test_what_dprs_training_files_may_lack(tmp_path, left_out):
    full = {**BOTH[0], "positive_ctxs": [ctx(passage_id="16")], "hard_negative_ctxs": [ctx(text="other")]}
    whole = {key: value for key, value in full.items() if key != left_out}
    whole["positive_ctxs"] = [
        {k: v for k, v in one.items() if k != left_out} for one in full["positive_ctxs"]
    ]
    for name, content in (("a.json", json.dumps([whole])), ("b.jsonl", lines(whole))):
        (tmp_path / name).write_text(content)
        store, asked = open_dpr_json(tmp_path / name, tmp_path / "cache")
        assert [store[row].text for row in asked[0].positives.tolist()] == ["Pia Roth sells the milk can."]
        assert len(asked[0].hard) == (left_out != "hard_negative_ctxs")


# -- halves of surrogate pairs -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("q.jsonl", '{"question": "who \\ud83d sells?", "answers": ["Pia\\uD83E", "\\ud83d\\ude00"]}\n'),
        ("q.json", '[{"question": "who \\ud83d sells?", "answers": ["Pia\\uD83E", "\\ud83d\\ude00"]}]'),
        ("q.qa.csv", "who \ufffd sells?\t['Pia\\ud83e', '\\U0001F600']\n"),
    ],
)
def test_half_an_emoji_is_replaced_and_counted(tmp_path, caplog, name, content):
    path = tmp_path / name
    path.write_text(content * (1 if name.endswith("json") else 2), encoding="utf-8")
    with caplog.at_level(logging.WARNING):
        examples = read_examples(path)
    assert (examples[0].question, examples[0].answers) == ("who \ufffd sells?", ("Pia\ufffd", "😀"))
    count = "1 record holds" if name.endswith("json") else "2 records hold"
    assert caplog.messages == [
        f"{path}: {count} half of a surrogate pair, as of an emoji cut in two, read as U+FFFD; the first is {path}, "
        "line 1"
    ]


def test_half_an_emoji_in_dprs_training_file(tmp_path, caplog):
    path = tmp_path / "train.json"
    path.write_text(
        json.dumps([{**BOTH[0], "question": "who \ud83d?", "positive_ctxs": [ctx(text="x \udc00 y")]}])
    )
    store, asked = open_dpr_json(path, tmp_path / "cache")
    assert asked[0].question == "who \ufffd?" and store[0].text == "x \ufffd y"


# -- found before training starts ----------------------------------------------------------------


def test_questions_without_a_passage_are_counted(tmp_path, caplog):
    path = tmp_path / "train.json"
    path.write_text(json.dumps([*BOTH, {**BOTH[0], "positive_ctxs": []}]))
    for _ in range(2):  # converted, and found in the cache
        caplog.clear()
        assert len(open_dpr_json(path, tmp_path / "cache")[1]) == 2
        assert caplog.messages == [f"{path}: 1 of 3 questions name no positive passage and are left out"]


def data(tmp_path, model, train: list[str], dev: list[str]) -> RagDataModule:
    files = {}
    for name, questions in (("train", train), ("dev", dev)):
        files[name] = str(tmp_path / f"{name}.jsonl")
        Path(files[name]).write_text(lines(*({"question": one, "answers": ["Paris"]} for one in questions)))
    return RagDataModule(QuestionAnswering(**files), model, 1, prepared=tmp_path)


@pytest.mark.parametrize("split", ["train", "dev"])
@pytest.mark.parametrize("with_passages", [True, False])
def test_a_question_too_long_for_the_generator_is_found_at_the_start(
    tmp_path, retriever, split, with_passages
):
    tokenizer = word_tokenizer()
    generator = Generator(tiny_bart(len(tokenizer)), tokenizer, max_context_length=20)
    model = RagSequence(retriever, generator) if with_passages else ClosedBook(generator)
    long = "capital " * 19 + "?"
    one = data(
        tmp_path,
        model,
        ["of France?", *([long] if split == "train" else [])],
        [long] if split == "dev" else ["a"],
    )
    with pytest.raises(UserError) as caught:
        one.setup()
    sentence = str(caught.value)
    assert sentence.startswith(
        f"{tmp_path}/{split}.jsonl, question {2 if split == 'train' else 1} (capital capital "
    )
    assert (
        "does not fit the generator's context of 20: shorten it or raise generator.max_context_length"
        in sentence
    )
    model.generator.max_context_length = 40  # as it says
    one.setup()
    assert one.sizes()["dev examples"] == 1


def test_the_advice_on_the_answers_key_works(tmp_path):
    """What the message names is typed as it stands there."""
    path = tmp_path / "leaders.jsonl"
    path.write_text(lines({"question": "who?", "answers_2016": ["a"], "answers_2018": ["b"]}))
    settings = [
        "task=qa",
        "corpus=local",
        f"task.train={path}",
        "task.dev=null",
        "task.passages=x",
        "name=x",
        "experiment=null",
    ]
    with pytest.raises(UserError) as caught:
        instantiate(compose_config("train", settings).task).examples("train")
    assert str(caught.value) == (
        f"{path}, line 1: no key 'answers', found question, answers_2016, answers_2018: name the key of the answers, "
        "as in task.answers=answers_2016"
    )
    task = instantiate(compose_config("train", [*settings, "task.answers=answers_2016"]).task)
    assert task.examples("train")[0].answers == ("a",)

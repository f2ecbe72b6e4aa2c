"""What was found and answered, in other tools' forms: TREC against ir_measures, and rows that are read back."""

import json
from pathlib import Path

import ir_measures
import numpy as np
import pytest
from commands import run
from conftest import PASSAGES, QUESTIONS
from ir_measures import RR, R, Success, nDCG
from tiny_runs import write_run

from rag.errors import UserError
from rag.evaluation.exports import check_exports
from rag.evaluation.trec import descending, escaped, question_ids, write_trec
from rag.files import read_json
from rag.index.passage import Passage
from rag.index.passages import PassageStore
from rag.metrics.record import find, records_of
from rag.retrievers import BM25
from rag.tasks.example import Example
from rag.tasks.qa import QuestionAnswering, read_examples

ASKED = [
    {"id": "a 1", "question": QUESTIONS[0], "answers": ["Paris"], "positive_ids": ["1"]},
    {
        "id": "b",
        "question": "Which capital lies on a river?",
        "answers": ["Tiber"],
        "positive_ids": ["3", "2"],
    },
    {"id": "b", "question": "xyzzy", "answers": ["Hemingway"], "positive_ids": ["5"]},  # finds nothing
    {"id": "c", "question": QUESTIONS[2], "answers": ["nowhere at all"]},
]


@pytest.fixture
def asked(tmp_path: Path) -> str:
    file = tmp_path / "asked.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in ASKED), encoding="utf-8")
    return str(file)


@pytest.fixture
def corpus(tmp_path: Path) -> str:
    file = tmp_path / "passages.tsv"
    rows = [f"{number}\t{text}\t{title}" for number, (title, text) in enumerate(PASSAGES, start=1)]
    file.write_text("\n".join(["id\ttext\ttitle", *rows]) + "\n", encoding="utf-8")
    return str(file)


def aggregate(folder: Path, name: str, measures: list) -> dict:
    qrels = ir_measures.read_trec_qrels(str(folder / f"qrels.{name}.txt"))
    return ir_measures.calc_aggregate(measures, qrels, ir_measures.read_trec_run(str(folder / "run.txt")))


def test_a_retriever_alone_finds_and_its_trec_files_give_our_recall(tmp_path, asked, corpus, capsys):
    """BM25 over a corpus without index or model: ir_measures' Success@K is our recall@K, of both kinds."""
    results = tmp_path / "results"
    command = [
        "reader=none",
        "retriever=bm25",
        f"corpus.path={corpus}",
        "task=qa",
        f"task.test={asked}",
        "trec=true",
    ]
    command += [f"paths.data={tmp_path}", f"results={results}", "recall_at=[1,2,5]"]
    assert run("evaluate", *command) == 0, capsys.readouterr().err
    out = capsys.readouterr().out
    assert (
        "evaluating retriever=bm25 on 4 questions of test" in out
        and "by ir_measures over qrels.recall.txt" in out
    )
    records = records_of(read_json(results / "result.json"))
    for name in ("recall", "answer_recall"):
        for k in (1, 2, 5):
            ours = find(records, name, k)
            theirs = aggregate(results / "trec", name, [Success @ k])[Success @ k]
            assert ours is not None and ours.value == pytest.approx(theirs), (name, k)
    run_lines = (results / "trec" / "run.txt").read_text().splitlines()
    assert run_lines[0].split()[:4] == ["a%201", "Q0", "1", "1"] and run_lines[0].split()[5] == "evaluation"
    # one gold passage of three, the other never found, counts as relevant
    assert "b 0 3 1" in (results / "trec" / "qrels.recall.txt").read_text().splitlines()
    assert "b~2 0 5 1" in (results / "trec" / "qrels.recall.txt").read_text().splitlines()
    said = read_json(results / "trec" / "measures.json")
    assert list(said["answer_recall"]) == ["RR@10"] and list(said["recall"]) == ["nDCG@10", "RR@10", "AP"]
    assert said["recall"]["nDCG@10"]["value"] == pytest.approx(
        aggregate(results / "trec", "recall", [nDCG @ 10])[nDCG @ 10]
    )
    assert said["recall"]["AP"]["n"] == 3
    assert run("evaluate", *command) == 0  # the same again: nothing is done
    assert "already exists, made with these settings" in capsys.readouterr().out


def test_measures_worked_out_by_hand(tmp_path):
    """Ranks 2 and 3 of three found, two gold passages, one of them never found: DCG 1/log2(3) of 1 + 1/log2(3)."""
    store = PassageStore.write([Passage(str(n), "", f"text {n}") for n in range(5)], tmp_path / "passages")
    examples = [Example("q", ("text 9",), positive_ids=("1", "7"), id="q"), Example("r", ("text 2",), id="r")]
    rows, scores = np.array([[0, 1, -1], [2, 3, -1]]), np.array([[2.0, 1.0, -np.inf], [1.0, 1.0, -np.inf]])
    write_trec(tmp_path / "trec", examples, rows, scores, store, QuestionAnswering().right_passages, "us")
    said = read_json(tmp_path / "trec" / "measures.json")
    gain = 1 / np.log2(3)
    assert said["recall"]["nDCG@10"]["value"] == pytest.approx(gain / (1 + gain))
    assert said["recall"]["RR@10"]["value"] == 0.5 and said["recall"]["AP"]["value"] == 0.25
    assert said["answer_recall"]["RR@10"]["value"] == pytest.approx(0.5)  # none for q, the first for r
    assert (tmp_path / "trec" / "run.txt").read_text().splitlines()[0] == "q Q0 0 1 2.0 us"


def test_equal_scores_keep_their_order_and_pieces_of_gold_count_as_gold(tmp_path):
    """trec_eval orders by score and then by id, downwards: "z" would come before "7#2"."""
    passages = [Passage("7#2", "", "b"), Passage("z", "", "a"), Passage("7#1", "", "c")]
    store = PassageStore.write(passages, tmp_path / "passages")
    examples = [Example("q", ("b",), positive_ids=("7",), id="q")]
    rows, scores = np.array([[0, 1, 2]]), np.zeros((1, 3))
    write_trec(tmp_path / "trec", examples, rows, scores, store, QuestionAnswering().right_passages, "us")
    assert aggregate(tmp_path / "trec", "recall", [RR @ 10, R @ 3]) == {RR @ 10: 1.0, R @ 3: 1.0}
    written = list(descending([3.0, 3.0, 3.0, 1.0, 2.0]))
    assert written == sorted(written, reverse=True) and len(set(map(np.float32, written))) == 5


def test_ids_with_spaces_are_escaped_and_stay_distinct():
    assert [escaped(id) for id in ("a b", "a%20b", "", "Straße\t1#2")] == [
        "a%20b",
        "a%2520b",
        "%",
        "Straße%091#2",
    ]
    assert question_ids([Example("", (), id=id) for id in ("7", "8", "7")]) == ["7", "8", "7~2"]


@pytest.fixture
def answered(tmp_path, index, asked) -> Path:
    folder = write_run(tmp_path / "run", "rag_sequence", index)
    results = tmp_path / "results"
    files = ["task=qa", "task.passages=null", "task.train=null", "task.dev=null", f"task.test={asked}"]
    exports = "export=[trec,fid,kilt,ragas,flashrag]"
    command = [f"checkpoint={folder}", *files, exports, "recall_at=[1,5]", f"results={results}", "n_docs=2"]
    assert run("evaluate", *command) == 0
    return results


def lines(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def test_a_model_that_answers_writes_all_forms(answered):
    predictions = lines(answered / "predictions.jsonl")
    kilt, ragas, flashrag, fid = (
        lines(answered / f"{name}.jsonl") for name in ("kilt", "ragas", "flashrag", "fid")
    )
    for number, said in enumerate(predictions):
        ids = [passage["id"] for passage in said["passages"]]
        texts = [passage["text"] for passage in said["passages"]]
        assert len(ids) == 2
        assert kilt[number]["input"] == ragas[number]["question"] == said["question"]
        (output,) = kilt[number]["output"]
        assert (
            output["answer"]
            == ragas[number]["answer"]
            == flashrag[number]["output"]["pred"]
            == said["prediction"]
        )
        assert [page["wikipedia_id"] for page in output["provenance"]] == ids
        assert (
            ragas[number]["contexts"] == texts and ragas[number]["reference"] == ASKED[number]["answers"][0]
        )
        found = flashrag[number]["output"]["retrieval_result"]
        assert [each["id"] for each in found] == ids and found[0]["contents"].endswith("\n" + texts[0])
        assert [each["id"] for each in fid[number]["ctxs"]][:2] == ids and len(fid[number]["ctxs"]) == 5
        odds = np.exp([each["score"] for each in fid[number]["ctxs"][:2]])
        np.testing.assert_allclose(odds / odds.sum(), [each["prior"] for each in said["passages"]], atol=1e-3)
    records = records_of(read_json(answered / "result.json"))
    ours = find(records, "recall", 5)
    assert ours is not None
    assert ours.value == pytest.approx(aggregate(answered / "trec", "recall", [Success @ 5])[Success @ 5])


def test_each_form_is_a_question_file_again(answered):
    for name in ("fid", "kilt", "flashrag"):
        read = read_examples(answered / f"{name}.jsonl")
        assert [each.question for each in read] == [record["question"] for record in ASKED]


def test_what_bm25_found_is_what_given_passages_read(tmp_path, asked, corpus, index, capsys):
    """reader=none writes fid.jsonl; retriever=given over it gives what BM25 gives, with its p(z|x)."""
    found = tmp_path / "found"
    command = ["reader=none", "retriever=bm25", f"corpus.path={corpus}", "task=qa", f"task.test={asked}"]
    command += ["limit=2", f"paths.data={tmp_path}", "recall_at=[4]"]
    assert run("evaluate", *command, f"results={found}") == 0, capsys.readouterr().err
    run_folder = write_run(tmp_path / "run", "rag_token", index)
    predictions = []
    for name, retriever in (
        ("given", ["retriever=given", f"task.test={found / 'fid.jsonl'}", "index.path=nowhere"]),
        ("bm25", ["retriever=bm25", f"task.test={asked}", "limit=2"]),
    ):
        files = [
            "task=qa",
            "task.passages=null",
            "task.train=null",
            "task.dev=null",
            f"paths.data={tmp_path}",
        ]
        assert (
            run(
                "evaluate",
                f"checkpoint={run_folder}",
                *files,
                *retriever,
                "n_docs=3",
                f"results={tmp_path / name}",
            )
            == 0
        )
        predictions.append(lines(tmp_path / name / "predictions.jsonl"))
    assert len(predictions[0]) == 2
    for one, other in zip(*predictions, strict=True):
        assert one["prediction"] == other["prediction"] and one["logprob"] == pytest.approx(
            other["logprob"], abs=1e-3
        )
        assert [each["text"] for each in one["passages"]] == [each["text"] for each in other["passages"]]
    assert BM25.build(index.passages).search([QUESTIONS[0]], 1)[1].tolist() == [[0]]


def test_another_tools_ranking_is_judged_without_a_model(tmp_path, asked, corpus, capsys):
    """reader=none retriever=given: nDCG of a file of a re-ranker's; and gold passages, which BM25's corpus holds."""
    ranked = [
        ASKED[0]
        | {"ctxs": [{"id": "2", "text": "Berlin", "score": 1}, {"id": "1", "text": "Paris", "score": 3}]},
        ASKED[1]
        | {"ctxs": [{"id": "9", "text": "no", "score": 2}, {"id": "2", "text": "Berlin", "score": 1}]},
    ]
    (tmp_path / "ranked.jsonl").write_text("".join(json.dumps(record) + "\n" for record in ranked))
    command = ["reader=none", "task=qa", f"paths.data={tmp_path}", "trec=true", "recall_at=[1,2]"]
    given = ["retriever=given", f"task.test={tmp_path / 'ranked.jsonl'}", f"results={tmp_path / 'given'}"]
    assert run("evaluate", *command, *given) == 0, capsys.readouterr().err
    first = find(records_of(read_json(tmp_path / "given" / "result.json")), "recall", 1)
    assert first is not None and (first.value, first.n) == (0.5, 2)
    gain = 1 / np.log2(3)
    of_second = gain / (1 + gain)  # rank 2, of two gold passages
    said = read_json(tmp_path / "given" / "trec" / "measures.json")
    assert said["recall"]["nDCG@10"]["value"] == pytest.approx((1 + of_second) / 2)
    gold = [
        "retriever=gold",
        f"task.test={asked}",
        "limit=2",
        f"corpus.path={corpus}",
        f"results={tmp_path / 'gold'}",
    ]
    assert run("evaluate", *command, *gold) == 2  # the sample holds a question without
    assert "retriever=gold knows no gold passage" in capsys.readouterr().err


@pytest.mark.parametrize(
    "settings, problem",
    [
        (["reader=bart"], "reader=bart does not exist: reader=none evaluates a retriever alone"),
        (["reader=none", "checkpoint=x"], "reader=none and checkpoint=x exclude each other"),
        (["reader=none", "retriever=bm25", "n_docs=3"], "n_docs=3 belongs to a model that reads"),
        (
            ["reader=none", "retriever=bm25", "corpus.path=nowhere"],
            "nowhere does not exist: give corpus.path=",
        ),
        (
            ["reader=none", "retriever=hybrid", "index.path=nowhere"],
            "there is no index at nowhere: build one",
        ),
        (
            ["reader=none", "retriever=bm25", "corpus.path=README.md", "export=[kilt]"],
            "export=kilt holds answers",
        ),
        (
            ["reader=none", "retriever=bm25", "corpus.path=README.md", "export=[xml]"],
            "export=xml does not exist",
        ),
        (["reader=none", "retriever=null"], "reader=none needs a retriever"),
    ],
)
def test_what_is_wrong_is_told(settings, problem, capsys):
    assert run("evaluate", *settings) == 2
    error = capsys.readouterr().err
    assert problem in error and "Traceback" not in error and len(error.splitlines()) == 1


def test_a_closed_book_has_no_run():
    with pytest.raises(UserError, match="a closed book retrieves nothing"):
        check_exports(["trec"], answers=True, reads=False)
    assert check_exports(["kilt", "kilt"], answers=True, reads=False) == ["kilt"]

"""Every experiment of the paper's tables, from its data to its cell: two steps of tiny models on stand-in files.

The files have the exact formats of the originals. What is trained is worth nothing; what is looked at is that each
experiment trains, that its evaluation has every metric its cells of the paper ask for, and that the reports find it.
"""

import csv
import gzip
import json
import zipfile
from pathlib import Path

import pytest
import torch
import yaml
from commands import run
from conftest import (
    ANSWERS,
    PASSAGES,
    QUESTIONS,
    SENTENCES,
    bert_tokenizer,
    tiny_bart,
    tiny_passage_encoder,
    tiny_question_encoder,
    word_tokenizer,
)

from rag.compose import CONFIGS, choices
from rag.encoders.dpr import PassageEncoder, QuestionEncoder
from rag.files import read_json
from rag.generators.seq2seq import Generator
from rag.metrics.record import by_k, find, swap_cells
from rag.reports.paper_cells import cells_of
from rag.reports.paper_tables import LAYOUTS, Found

pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("experiments"),  # on one worker, so that what others start from is trained once
    pytest.mark.filterwarnings("ignore:.*the retriever has collapsed"),
]
TRAINED = [each for each in choices("experiment") if each.startswith("table")]
LOOKED_AT = [each for each in choices("experiment") if each.startswith(("figure3", "hotswap"))]


def qa_csv(path: Path, answers: list[str]) -> None:
    """DPR's form."""
    with (gzip.open if path.suffix == ".gz" else open)(path, "wt", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter="\t").writerows(
            (question, repr([answer])) for question, answer in zip(QUESTIONS, answers, strict=True)
        )


def training_file(path: Path, answers: list[str]) -> None:
    """DPR's training form, which brings passages along."""
    context = {"title": "Paris", "text": "Paris is the capital of France.", "passage_id": "1"}
    contexts = {"positive_ctxs": [context], "negative_ctxs": [], "hard_negative_ctxs": []}
    records = [
        {"question": question, "answers": [answer], **contexts}
        for question, answer in zip(QUESTIONS, answers, strict=True)
    ]
    with gzip.open(path, "wt", encoding="utf-8") as file:
        json.dump(records, file, indent=4)


def write_stand_ins(data: Path) -> None:
    for folder in ("dpr", "triviaqa", "msmarco", "searchqa", "fever"):
        (data / folder).mkdir(parents=True)
    passages = [*PASSAGES, *((title, f"{text} Copy {n}.") for n in range(8) for title, text in PASSAGES)]
    with gzip.open(data / "psgs_w100.tsv.gz", "wt", encoding="utf-8") as file:
        file.write("id\ttext\ttitle\n")
        file.writelines(f'{n}\t"{text}"\t{title}\n' for n, (title, text) in enumerate(passages, start=1))
    for name, answers in (
        ("nq", ANSWERS),
        ("trivia", ANSWERS),
        ("webquestions", ANSWERS),
        ("curatedtrec", ["Par(is|ma)", "[Tt]iber", "(Ernest )?Hemingway"]),
    ):
        for split in ("train", "dev", "test"):
            if name in ("webquestions", "curatedtrec") and split != "test":
                training_file(data / "dpr" / f"biencoder-{name}-{split}.json.gz", answers)
            else:
                qa_csv(data / "dpr" / f"{name}-{split}.qa.csv{'.gz' if name == 'trivia' else ''}", answers)
    questions = [{"Question": question, "QuestionId": f"tc_{n}"} for n, question in enumerate(QUESTIONS)]
    for name, answered in (("wikipedia-dev", True), ("wikipedia-test-without-answers", False)):
        answer = {"Answer": {"Value": "Paris", "Aliases": ["Paris", "Lutetia"]}} if answered else {}
        content = {"Data": [question | answer for question in questions], "Domain": "Wikipedia"}
        (data / "triviaqa" / f"{name}.json").write_text(json.dumps(content))
    rows = {str(n): question for n, question in enumerate(QUESTIONS)}
    columns = {"query": rows, "query_id": {n: 100 + int(n) for n in rows}}
    answers = {"wellFormedAnswers": {n: ["Paris is the capital of France."] for n in rows}}
    for name, content in (
        ("train_v2.1", columns | answers),
        ("dev_v2.1", columns | answers),
        ("eval_v2.1_public", columns),
    ):
        with gzip.open(data / "msmarco" / f"{name}.json.gz", "wt") as file:
            json.dump(content, file)
    for split in ("train", "val", "test"):
        with zipfile.ZipFile(data / "searchqa" / f"{split}.zip", "w") as archive:
            for n, (title, text) in enumerate(PASSAGES[:3]):
                clue = {"answer": title, "question": text, "category": "CITIES", "search_results": []}
                archive.writestr(f"{n:05d}.json", json.dumps(clue))
    claims = [("SUPPORTS", "Paris"), ("REFUTES", "Rome"), ("NOT ENOUGH INFO", None)]
    lines = [
        json.dumps(
            {
                "id": n,
                "label": label,
                "claim": QUESTIONS[n],
                "evidence": [[[n, n, page, None if page is None else 0]]],
            }
        )
        for n, (label, page) in enumerate(claims)
    ]
    for name in ("train", "paper_dev", "paper_test"):
        (data / "fever" / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    leaders = [
        {"question": QUESTIONS[0], "answers_2016": ["Paris"], "answers_2018": ["Rome"]},
        {"question": QUESTIONS[1], "answers_2016": ["Tiber"], "answers_2018": ["Seine"]},
    ]
    (data / "leaders.jsonl").write_text("".join(json.dumps(one) + "\n" for one in leaders))


class Stand:
    """The scripts over the stand-in files and models; trains each run once, and first what it starts from."""

    def __init__(self, root: Path):
        self.root = root
        write_stand_ins(root / "data")
        torch.manual_seed(0)
        bert, words = bert_tokenizer(), word_tokenizer([*SENTENCES, "true false unknown"])
        QuestionEncoder(tiny_question_encoder(len(bert)), bert).save_pretrained(root / "question_encoder")
        PassageEncoder(tiny_passage_encoder(len(bert)), bert).save_pretrained(root / "passage_encoder")
        Generator(tiny_bart(len(words)), words).save_pretrained(root / "generator")
        self.places = [f"paths.{each}={root / each}" for each in ("outputs", "data", "indexes")]
        encoder = f"passage_encoder={root / 'passage_encoder'}"
        build = [
            "experiment=table1/nq_rag_token",
            encoder,
            "index.type.factory=Flat",
            "recall_questions=null",
        ]
        assert self("build_index", *build) == 0
        for year in (2016, 2018):
            names = [f"corpus.name=wikipedia_{year}", f"corpus.path={root / 'data' / 'psgs_w100.tsv.gz'}"]
            assert self("build_index", *build, *names) == 0

    def __call__(self, script: str, *arguments: str) -> int:
        return run(script, *arguments, *self.places)

    def trained(self, name: str) -> Path:
        run = self.root / "outputs" / name
        if (run / "result.json").exists():
            return run
        content = yaml.safe_load((CONFIGS / "experiment" / f"{name}.yaml").read_text())
        parts = [
            f"generator.path={self.root / 'generator'}",
            f"question_encoder={self.root / 'question_encoder'}",
        ]
        if start := content.get("start"):
            self.trained(start.removeprefix("${paths.outputs}/"))
            parts = []
        short = [
            "trainer.max_steps=2",
            "trainer.val_check_interval=2",
            "trainer.accelerator=cpu",
            "trainer.devices=1",
        ]
        short += ["datamodule.batch_size=2", "datamodule.eval_batch_size=2", "datamodule.dev_limit=2"]
        short += ["generator.max_context_length=64", "decoding.max_new_tokens=5"]
        assert self("train", f"experiment={name}", *parts, *short) == 0
        return run


@pytest.fixture(scope="module")
def stand(tmp_path_factory: pytest.TempPathFactory) -> Stand:
    return Stand(tmp_path_factory.mktemp("experiments"))


def evaluated(stand: Stand, name: str, *arguments: str) -> Found:
    made = stand.root / "outputs" / "evaluation"
    folder = made / f"{name.replace('/', '-')}-{len(list(made.glob('*')))}"
    assert stand("evaluate", *arguments, f"results={folder}") == 0
    return Found(folder, read_json(folder / "result.json"))


@pytest.mark.parametrize("name", TRAINED)
def test_a_run_of_a_table_fills_its_cells(stand, name):
    run = stand.trained(name)
    curves = (run / "metrics.csv").read_text()
    content = yaml.safe_load((CONFIGS / "experiment" / f"{name}.yaml").read_text())
    cells = cells_of(content["paper"], name)
    assert cells
    splits = {cell.split for cell in cells} | {cell.instead for cell in cells if cell.instead != "dev"}
    if "msmarco" in name and name.startswith("table2"):
        splits |= {"dev"}
    for split in sorted(splits):
        evaluation = evaluated(stand, name, f"checkpoint={run}", f"split={split}")
        sent = "tqa" in name and split == "wikipedia_test" or "msmarco" in name and split == "test"
        assert any(evaluation.folder.glob("submission.json*")) == sent
        for cell in cells:
            if cell.split == split and not sent or cell.instead == split:
                if cell.metric in ("distinct_trigrams", "em_not_retrieved"):
                    continue  # what these models say may have no three words, and fifty passages hold every answer
                assert cell.ours(evaluation.records) is not None, cell
    assert "dev/" in curves


@pytest.mark.parametrize("name", LOOKED_AT)
def test_what_only_evaluates(stand, name):
    content = yaml.safe_load((CONFIGS / "experiment" / f"{name}.yaml").read_text())
    stand.trained(content["checkpoint"].removeprefix("${paths.outputs}/"))
    split = "split=dev" if "msmarco" in name else "split=test"
    evaluation = evaluated(stand, name, f"experiment={name}", split)
    assert evaluation.result["name"] == name
    for cell in cells_of(content["paper"], name):
        assert cell.ours(evaluation.records) is not None, cell
    if name.startswith("figure3"):
        measure = "rouge_l" if "msmarco" in name else "em"
        assert list(by_k(evaluation.records, measure)) == [1, 5, 10, 15, 20, 30, 40, 50]
    else:
        # the same passages under both indexes: the same answers, judged by either year's
        cells = {
            a: {i: each.value for i, each in row.items()} for a, row in swap_cells(evaluation.records).items()
        }
        assert cells["2016"]["2016"] == cells["2016"]["2018"] == find(evaluation.records, "em").value
        assert cells["2018"]["2016"] == cells["2018"]["2018"]


def test_the_reports_find_the_runs(stand, capsys):
    stand.trained("table2/fever3_rag_sequence")
    evaluated(
        stand,
        "report",
        f"checkpoint={stand.root / 'outputs' / 'table2' / 'fever3_rag_sequence'}",
        "split=test",
    )
    for table in LAYOUTS:
        assert stand("evaluate", f"report={table}") == 0
        assert (stand.root / "outputs" / "reports" / f"{table}.md").exists()
        assert (stand.root / "outputs" / "reports" / f"{table}.png").stat().st_size > 1000
    table2 = (stand.root / "outputs" / "reports" / "table2.md").read_text()
    line = next(line for line in table2.splitlines() if line.startswith("| RAG-Sequence |"))
    assert line.count("72.5 / ") == 1 and "72.5 / not run" not in line

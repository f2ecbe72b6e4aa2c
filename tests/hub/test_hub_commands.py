"""The commands of the README and of the configs' heads that name the hub, on a small hub of our own; each a process."""

import json
import os
import pty
import subprocess
import sys
import termios
import threading
from contextlib import suppress
from pathlib import Path

import pytest
from conftest import ANSWERS, PASSAGES, QUESTIONS
from hub_repositories import build
from hub_server import Hub

pytestmark = pytest.mark.slow
PROJECT = Path(__file__).parents[2]


class Place:
    """A folder with data/, indexes/ and outputs/, a cache of its own, and the hub."""

    def __init__(self, folder: Path, hub: Hub):
        self.folder, self.hub = folder, hub
        self.environment = os.environ | {
            "HF_ENDPOINT": hub.address,
            "HF_HOME": str(folder / "cache"),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(PROJECT),
        }
        self.paths = [f"paths.{name}={folder / name}" for name in ("data", "indexes", "outputs")]

    def on_a_terminal(self, *command: str) -> str:
        """What a command writes to a terminal as its standard error."""
        terminal, inner = pty.openpty()
        termios.tcsetwinsize(inner, (40, 160))
        shown: list[bytes] = []

        def read() -> None:
            with suppress(OSError):  # of a terminal that was closed
                while piece := os.read(terminal, 1 << 12):
                    shown.append(piece)

        reader = threading.Thread(target=read)
        reader.start()
        done = subprocess.run(
            [sys.executable, *command],
            cwd=PROJECT,
            env=self.environment,
            stdout=subprocess.DEVNULL,
            stderr=inner,
            timeout=240,
        )
        os.close(inner)
        reader.join()
        os.close(terminal)
        said = b"".join(shown).decode()
        assert done.returncode == 0, said
        return said

    def run(self, *command: str, expect: int = 0, **environment: str) -> str:
        done = subprocess.run(
            [sys.executable, *command],
            cwd=PROJECT,
            env=self.environment | environment,
            capture_output=True,
            text=True,
            timeout=240,
        )
        said = done.stdout + done.stderr
        assert done.returncode == expect, said
        assert "Traceback" not in said, said
        return said


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("hub")
    build(root)
    with Hub(root) as hub:
        yield Place(tmp_path_factory.mktemp("place"), hub)


@pytest.fixture(scope="module")
def wiki_dpr(place):
    """configs/corpus/wiki_dpr.yaml and configs/index/wiki_dpr_hnsw_sq8.yaml: downloaded, and both indexes built."""
    for files in ("data/psgs_w100/nq/*", "index/psgs_w100.nq.HNSW128_SQ8*"):
        where = ["--repo-type", "dataset", "--local-dir", str(place.folder / "data/wiki_dpr")]
        hf = "from huggingface_hub.cli.hf import main; main()"
        place.run("-c", hf, "download", "facebook/wiki_dpr", *where, "--include", files)
    common = ["build_index.py", "experiment=null", "corpus=wiki_dpr", *place.paths]
    said = place.run(*common, "index=wiki_dpr_hnsw_sq8")
    assert "taking over" in said and "HNSW" in said
    said = place.run(*common, "index=flat")
    assert "wiki_dpr-" in said
    return place.folder / "indexes" / "wiki_dpr-hnsw_sq8"


@pytest.mark.parametrize("kind", ["sequence", "token"])
def test_the_published_models_are_evaluated(place, wiki_dpr, kind):
    source = "hub://google-research-datasets/nq_open/nq_open/validation"
    command = [
        "evaluate.py",
        f"checkpoint=facebook/rag-{kind}-nq",
        f"experiment=table1/nq_rag_{kind}",
        f"task.test={source}",
        f"index.path={wiki_dpr}",
        "n_docs=5",
        "recall_at=[1,5]",
        *place.paths,
    ]
    said = place.run(*command)
    assert "exact match" in said
    folder = next((place.folder / "outputs/evaluation" / f"facebook--rag-{kind}-nq").iterdir())
    inputs = json.loads((folder / "run.json").read_text())["description"]["inputs"]
    model = inputs[f"hub://facebook/rag-{kind}-nq"]
    assert model.endswith(place.hub.commit(place.hub.folder("models", f"facebook/rag-{kind}-nq")))
    nq = place.hub.folder("datasets", "google-research-datasets/nq_open")
    assert inputs[source].endswith(place.hub.commit(nq))
    assert "already exists" in place.run(*command)
    # what was downloaded is enough
    assert "already exists" in place.run(*command, HF_HUB_OFFLINE="1")


def test_a_published_model_is_asked(place, wiki_dpr):
    command = ["-m", "rag.ask", "checkpoint=facebook/rag-token-nq"]
    said = place.run(*command, f"index.path={wiki_dpr}", "json=true", *place.paths, QUESTIONS[0])
    reply = json.loads(next(line for line in said.splitlines() if line.startswith("{")))
    assert reply["question"] == QUESTIONS[0] and len(reply["passages"]) == 5
    told = place.run(*command, QUESTIONS[0], expect=2)
    assert "does not say which passages it reads: give index.path=…" in told


def test_the_papers_run_is_trained_in_half_precision(place, wiki_dpr):
    nq = "hub://google-research-datasets/nq_open/nq_open"
    command = [
        "train.py",
        "experiment=table1/nq_rag_sequence",
        "trainer.precision=bf16-mixed",
        *(f"task.train={nq}/train", f"task.dev={nq}/validation", f"index.path={wiki_dpr}"),
        *("trainer.max_steps=2", "trainer.val_check_interval=2", "datamodule.batch_size=2"),
        *("datamodule.num_workers=0", "trainer.accelerator=cpu", *place.paths),
    ]
    shown = " ".join(place.run(*command, "info=true").split())
    assert "parameters, float32, trained" in shown and "bfloat16" not in shown.replace("bf16", "")
    place.run(*command)
    run = place.folder / "outputs/table1/nq_rag_sequence"
    result = json.loads((run / "result.json").read_text())
    assert result["steps"] == 2
    inputs = json.loads((run / "run.json").read_text())["description"]["inputs"]
    for name in ("facebook/bart-large", "facebook/dpr-question_encoder-single-nq-base"):
        assert inputs[f"hub://{name}"].endswith(place.hub.commit(place.hub.folder("models", name)))
    config = json.loads((run / "model/generator/config.json").read_text())
    assert config["dtype"] == "float32"
    test = [f"task.test={nq}/validation", "n_docs=3", "recall_at=[1]"]
    assert "exact match" in place.run("evaluate.py", f"checkpoint={run}", *test)


def test_ones_own_passages_with_the_hubs_models(place):
    mine = place.folder / "my"
    mine.mkdir()
    rows = [f"{n}\t{text}\t{title}" for n, (title, text) in enumerate(PASSAGES, start=1)]
    (mine / "passages.tsv").write_text("\n".join(["id\ttext\ttitle", *rows, ""]))
    questions = [
        json.dumps({"question": question, "answers": [answer]})
        for question, answer in zip(QUESTIONS, ANSWERS, strict=True)
    ]
    for name in ("train", "dev"):
        (mine / f"{name}.jsonl").write_text("\n".join([*questions, ""]))
    index = f"index.path={place.folder / 'indexes/mine'}"
    place.run(
        "build_index.py",
        "experiment=null",
        f"corpus.path={mine / 'passages.tsv'}",
        "name=mine",
        index,
        *place.paths,
    )
    data = [
        f"task.passages={mine / 'passages.tsv'}",
        f"task.train={mine / 'train.jsonl'}",
        f"task.dev={mine / 'dev.jsonl'}",
    ]
    command = ["train.py", "experiment=null", "task=qa", "corpus=local", *data, "generator=bart_base", index]
    steps = ["name=mine", "trainer.max_steps=2", "trainer.val_check_interval=2", "trainer.accelerator=cpu"]
    place.run(*command, *steps, "datamodule.num_workers=0", *place.paths)
    assert (place.folder / "outputs/mine/result.json").exists()


def test_the_bi_encoder_starts_from_bert(place):
    said = place.run(
        "-c",
        "from rag.training.dpr import bert_encoders; print(bert_encoders('bert-base-uncased')[0].fingerprint())",
    )
    assert any(len(line) == 16 for line in said.splitlines())


def test_a_download_shows_its_progress(place):
    (place.folder / "few.tsv").write_text("id\ttext\ttitle\n1\tParis lies on the Seine.\tParis\n")
    arguments = [f"corpus.path={place.folder / 'few.tsv'}", f"index.path={place.folder / 'indexes/few'}"]
    encoder = "passage_encoder=facebook/dpr-ctx_encoder-multiset-base"
    said = place.on_a_terminal("build_index.py", "experiment=null", *arguments, encoder, *place.paths)
    assert "100%" in said.partition("reading passages")[0], said


def test_a_gated_data_set_is_explained(place):
    place.hub.gated.add("microsoft/ms_marco")
    ask = "from rag.tasks.ms_marco import HUB_DEV, MsMarco; from rag.errors import UserError\n"
    ask += "try: list(MsMarco().examples('dev'))\nexcept UserError as error: print(error)"
    try:
        said = place.run("-c", ask, HF_HOME=str(place.folder / "another cache"))
    finally:
        place.hub.gated.clear()
    assert "microsoft/ms_marco is gated on the hub: request access at" in said and "datasets/micro" in said


READ = """
import sys
from rag.tasks.ms_marco import MsMarco
from rag.tasks.natural_questions import NaturalQuestions
from rag.tasks.trivia_qa import TriviaQA
from rag.tasks.web_questions import WebQuestions
for task, split in ((NaturalQuestions(), "train"), (TriviaQA(), "wikipedia_dev"), (WebQuestions(), "test"),
                    (TriviaQA(), "train"), (MsMarco(), "train")):
    for example in task.examples(split):
        print(type(task).__name__, split, example.question, "|".join(example.answers), sep="\\t")
"""


def test_the_data_sets_are_read(place):
    said = place.run("-c", READ)
    without = place.run("-c", READ, HF_ENDPOINT="http://127.0.0.1:9")  # from what was downloaded
    assert without.count("cannot be reached") == 1
    rows = [line.split("\t") for line in said.splitlines() if line.count("\t") == 3]
    assert [line.split("\t") for line in without.splitlines() if line.count("\t") == 3] == rows
    read = {}
    for task, split, question, answers in rows:
        read.setdefault((task, split), []).append((question, answers))
    pairs = list(zip(QUESTIONS, ANSWERS, strict=True))
    assert read[("NaturalQuestions", "train")] == pairs * 2
    assert read[("TriviaQA", "wikipedia_dev")] == pairs and read[("TriviaQA", "train")] == pairs * 2
    assert read[("WebQuestions", "test")] == pairs
    assert read[("MsMarco", "train")] == [(q, f"It is {a}.") for q, a in (pairs * 2)[::2]]

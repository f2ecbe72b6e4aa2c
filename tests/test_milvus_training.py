"""The scripts over an engine: what they print and the weights they leave are those over a FAISS file, to the last bit.

The mini-wiki and the tiny models of test_scripts.py.
"""

import json
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

pytest.importorskip("pymilvus", reason='needs the extra "milvus" (pymilvus)')
pytest.importorskip("milvus_lite", reason='needs the extra "milvus" (milvus-lite)')

from engines import Engine
from test_scripts import RAG, demo, weights  # noqa: F401

from rag.index.folder import Index
from rag.index.milvus_fill import fill
from rag.index.milvus_type import MilvusType
from rag.metrics.record import records_of, swap_cells
from rag.runs import PROJECT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("scripts"),
    pytest.mark.filterwarnings("ignore:.*the retriever has collapsed"),
]


@pytest.fixture(scope="module")
def both(demo):  # noqa: F811
    """Both editions of the mini-wiki's index in files of milvus-lite; the folder that has them."""
    place = demo.root / "engines"
    for edition in ("index_a", "index_b"):
        settings = [f"experiment=miniwiki/{edition}", "index=milvus", f"index.path={place / edition}"]
        assert demo("build_index", *settings) == 0
    return place


def over(place: Path) -> list[str]:
    editions = {
        name: {"answers": f"answers_{name.lower()}", "index": str(place / f"index_{name.lower()}")}
        for name in "AB"
    }
    given = json.dumps(editions).replace('"', "")
    return [
        *("experiment=miniwiki/rag_sequence", *RAG, "index=milvus", "retriever=milvus"),
        *(f"index.path={place / 'index_a'}", f"hot_swap.editions={given}".replace(": ", ":")),
    ]


def test_training_evaluation_and_hot_swap_are_those_over_faiss(demo, both, tmp_path):  # noqa: F811
    run = tmp_path / "run"
    assert demo("train", *over(both), f"paths.run={run}") == 0
    assert weights(run) == weights(demo.run("rag_sequence"))
    for checkpoint, results in ((run, "engine"), (demo.run("rag_sequence"), "faiss")):
        assert demo("evaluate", f"checkpoint={checkpoint}", "limit=6", f"results={tmp_path / results}") == 0
    one, two = (json.loads((tmp_path / name / "result.json").read_text()) for name in ("engine", "faiss"))
    assert one["index"]["type"] == "Milvus FLAT" and one["metrics"] == two["metrics"]
    assert [len(row) for row in swap_cells(records_of(one)).values()] == [2, 2]


def test_an_engine_that_is_gone_in_the_middle_of_training(demo, both, tmp_path, capfd):  # noqa: F811
    """It goes away after the third search and comes back after three seconds: the same weights."""
    engine = Engine(tmp_path / "data")
    folder = tmp_path / "index"
    shutil.copytree(both / "index_a", folder)
    (folder / "collection.json").unlink()
    fill(folder, MilvusType(engine.uri), show_progress=False)
    engine.calls.clear()
    went = threading.Event()

    def leave() -> None:
        while engine.calls.count("Search") < 3:
            time.sleep(0.01)
        engine.stop()
        went.set()
        time.sleep(3)
        engine.start()

    away = threading.Thread(target=leave)
    away.start()
    run = tmp_path / "run"
    assert demo("train", *over(both), f"index.path={folder}", f"paths.run={run}") == 0
    away.join()
    said = capfd.readouterr().out
    assert went.is_set() and f"{engine.uri} does not answer; waiting up to 30 minutes" in said
    assert f"{engine.uri} answers again" in said
    assert weights(run) == weights(demo.run("rag_sequence"))
    engine.stop()


def test_two_ranks_share_the_file(demo, both, tmp_path):  # noqa: F811
    """DDP: both ranks ask one server, which a rank starts; the losses are those over FAISS."""
    results = []
    for name, settings in {"engine": over(both), "faiss": ["experiment=miniwiki/rag_sequence", *RAG]}.items():
        command = [
            sys.executable,
            "train.py",
            *settings,
            *demo.places,
            "trainer.devices=2",
            "trainer.strategy=ddp",
        ]
        command += ["datamodule.batch_size=2", f"paths.run={tmp_path / name}"]
        done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr
        results.append(json.loads((tmp_path / name / "result.json").read_text())["metrics"])
    one, two = ({k: v for k, v in each.items() if "second" not in k} for each in results)
    assert one == pytest.approx(two, abs=1e-6)
    assert weights(tmp_path / "engine") == weights(tmp_path / "faiss")


def test_a_thin_folder_trains(demo, both, tmp_path):  # noqa: F811
    """A machine that has nothing of the index but its manifest: vectors, passages and tokens from the engine."""
    thin = tmp_path / "thin"
    thin.mkdir()
    (thin / "manifest.json").write_bytes((both / "index_a/manifest.json").read_bytes())
    uri = Index.open(both / "index_a").collection.connection.uri
    run = tmp_path / "run"
    settings = [*over(both), f"index.path={thin}", f"retriever.uri={uri}", "hot_swap=null"]
    assert demo("train", *settings, f"paths.run={run}") == 0
    assert weights(run) == weights(demo.run("rag_sequence"))
    assert sorted(each.name for each in thin.iterdir()) == ["manifest.json"]

"""The commands that are killed, on inputs so small that each takes a second, and what they start from."""

import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

GENERATOR = ["generator.width=16", "generator.heads=2", "generator.layers=1", "generator.feedforward=16"]
ENCODERS = ["encoders.width=16", "+encoders.heads=2", "+encoders.feedforward=16"]
SHORT = ["trainer.max_steps=2", "datamodule.batch_size=4", "trainer.log_every_n_steps=1"]
# Four steps with a look at dev after every second, and a checkpoint after each.
RAG = [
    *("trainer.max_steps=4", "datamodule.batch_size=4", "trainer.log_every_n_steps=1"),
    *("trainer.val_check_interval=2", "datamodule.dev_limit=4", "datamodule.eval_batch_size=4"),
    *("n_docs=2", "decoding.max_new_tokens=3", "checkpoint_minutes=1e-7"),
]


@dataclass(frozen=True)
class Scenario:
    """A command in the folder `work`, which holds a copy of `before`, or nothing.

    what: for the table. prepare: makes what is in `before`, in a process of its own.
    """

    name: str
    what: str
    command: Callable[[], Any]
    prepare: Callable[[Path], Any] | None = None
    processes: int = 1


class Inputs:
    """A mini-wiki with all that is trained from it, and a corpus of its own, in a folder that nothing changes later."""

    def __init__(self, root: Path):
        self.root, self.work = root / "inputs", root / "work"
        self.encoder = self.demo("dpr") / "model" / "passage_encoder"
        self.places = [
            f"paths.outputs={self.root / 'out'}",
            f"paths.data={self.root / 'data'}",
            f"paths.indexes={self.root / 'ix'}",
        ]

    def demo(self, name: str) -> Path:
        return self.root / "out" / "demo" / name

    def make(self) -> None:
        """By the commands themselves."""
        from rag.commands.build_index import build_index
        from rag.commands.train import train
        from rag.miniwiki.world import write_world

        write_world(self.root / "data" / "miniwiki", seed=1, people=120, institutions=40)
        passages = (self.root / "data" / "miniwiki" / "edition_a.tsv").read_text().splitlines()
        for name, lines in {"small": passages[:41], "other": passages[30:75]}.items():
            (self.root / f"{name}.tsv").write_text("\n".join([passages[0], *lines[1:]]) + "\n")
        (self.root / "more.tsv").write_text("\n".join([passages[0], *passages[90:105]]) + "\n")
        (self.root / "ids.txt").write_text("3\n17\n30\n")
        train("experiment=miniwiki/denoising", *GENERATOR, *SHORT, *self.places)
        train("experiment=miniwiki/dpr", *ENCODERS, *SHORT, *self.places)
        for edition in "ab":
            build_index(f"experiment=miniwiki/index_{edition}", *self.places)
        quick = ["trainer.val_check_interval=2", "datamodule.dev_limit=2", "decoding.max_new_tokens=3"]
        train("experiment=miniwiki/warmup", *SHORT, *quick, *self.places)
        train("experiment=miniwiki/rag_token", *RAG, *self.places)

    # -- commands ----------------------------------------------------------------------------------

    def index(self, corpus: str = "small", *more: str) -> Path:
        from rag.commands.build_index import build_index

        given = [f"corpus.path={self.root / f'{corpus}.tsv'}", f"passage_encoder={self.encoder}"]
        place = f"index.path={self.work / 'index'}"
        return build_index("experiment=null", *given, place, "shard_size=16", *self.places, *more)

    def update(self) -> Path:
        from rag.commands.build_index import build_index

        given = [f"add={self.root / 'more.tsv'}", f"remove={self.root / 'ids.txt'}"]
        given += [f"passage_encoder={self.encoder}", f"index.path={self.work / 'index'}"]
        return build_index("experiment=null", *given, *self.places)

    def train(self, *more: str) -> Path:
        from rag.commands.train import train

        run = f"paths.run={self.work / 'run'}"
        return train("experiment=miniwiki/rag_sequence", *RAG, run, *self.places, *more)

    def evaluate(self, *more: str) -> Path | None:
        from rag.commands.evaluate import evaluate

        asked = [f"checkpoint={self.demo('rag_token')}", "limit=8", "batch_size=2", "recall_at=[1,2]"]
        return evaluate(*asked, "k_sweep=[1,2]", f"results={self.work / 'results'}", *self.places, *more)

    def stages(self) -> None:
        """A driver with real stages: a world, and two runs that are made from it, side by side."""
        from rag.stages import Stage, run_all

        def run(name: str) -> Stage:
            return Stage(
                name, ["-c", RUN, str(self.work / name), str(self.work / "world" / "test.jsonl")], ["world"]
            )

        given = [f"output={self.work / 'world'}", "people=120", "institutions=40"]
        plan = [Stage("world", ["-m", "rag.miniwiki", *given]), run("one"), run("two")]
        run_all(plan, self.work, workers=2, threads=1)


# What a stage does to its folder, without what takes seconds to import: a run that is begun, worked on and finished.
RUN = """
import sys
from pathlib import Path
from rag.files import write_aside
from rag.runs import Run, tidy
folder, data = map(Path, sys.argv[1:])
run = Run.open(folder, {"a": 1}, "a: 1", [str(data)], overwrite="changed")
if not run.finished:
    run.begin()
    with write_aside(folder / "model") as aside:
        aside.mkdir()
        for number in range(5):
            (aside / f"{number}.txt").write_text(data.read_text()[number :: 7])
    run.finish({"lines": len(data.read_text().splitlines())})
tidy(folder)
"""


def scenarios(inputs: Inputs) -> list[Scenario]:
    ddp = ["trainer.devices=2", "trainer.strategy=ddp", "datamodule.batch_size=2"]

    def built(work: Path) -> None:
        inputs.index()

    def trained(work: Path) -> None:
        inputs.train("seed=3")

    def evaluated(work: Path) -> None:
        inputs.evaluate("n_docs=1")

    def refreshed() -> Path:
        return inputs.train("retriever=dense_trained", "refresh=1")

    def again() -> Path:
        return inputs.train("overwrite=changed")

    def other() -> Path:
        return inputs.index("other", "overwrite=changed")

    def of_type() -> Path:
        return inputs.index("small", "index=sq8", "overwrite=changed")

    def judged() -> Path | None:
        return inputs.evaluate("overwrite=changed")

    return [
        Scenario("index", "an index is built", inputs.index),
        Scenario("corpus", "an index is replaced by one of another corpus", other, built),
        Scenario("type", "an index is replaced by one of another type", of_type, built),
        Scenario("update", "passages are added to an index and removed", inputs.update, built),
        Scenario("training", "a model is trained", inputs.train),
        Scenario("refreshing", "a model is trained and its index embedded again after each step", refreshed),
        Scenario("overwriting", "a run is replaced by one with another seed", again, trained),
        Scenario("evaluation", "a model is evaluated", inputs.evaluate),
        Scenario("evaluating", "an evaluation is replaced by one with another K", judged, evaluated),
        Scenario("stages", "a driver runs stages", inputs.stages),
        Scenario("index of two", "two processes build an index", inputs.index, None, 2),
        Scenario("evaluation of two", "two processes evaluate a model", inputs.evaluate, None, 2),
        Scenario("training of two", "two processes train a model", lambda: inputs.train(*ddp), None, 2),
    ]


def renew(work: Path, before: Path | None) -> None:
    """The folder as it is before the command."""
    shutil.rmtree(work, ignore_errors=True)
    if before is not None:
        shutil.copytree(before, work, symlinks=True)
    else:
        work.mkdir(parents=True)


def imported() -> Sequence[str]:
    """Import all that the commands would, once."""
    import matplotlib.backends.backend_agg  # noqa: F401
    import pandas  # noqa: F401
    import torch

    import rag.analysis.opened  # noqa: F401
    import rag.commands.evaluating
    import rag.commands.indexing
    import rag.commands.training
    import rag.encoders.opening
    import rag.reports.plots
    import rag.reports.run_report  # noqa: F401

    torch.set_num_threads(1)
    return sorted(name for name in sys.modules if name.startswith("rag."))

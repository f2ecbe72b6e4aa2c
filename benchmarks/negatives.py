"""In-batch, BM25's and re-mined negatives: python -m benchmarks.negatives miniwiki | text FOLDER [--seeds 1 2 3]

The bi-encoder is trained from the same weights, for the same steps, with each kind of negatives; then each test
question's passage is sought among all, exactly.

    miniwiki      the demo's small encoders after their inverse cloze, trained on all training questions (--data is the
                  folder that holds miniwiki/)
    text FOLDER   all-MiniLM-L6-v2 on passages.tsv, train.jsonl and dev.jsonl of FOLDER, packed or not: trained on
                  --passages passages and their questions, judged on as many others and theirs

    recall@K      each seed's
    CPU s         of training, mining included
    changed       the share of negatives that the last mining found and the one before had not
"""

import argparse
import copy
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import pytorch_lightning as pl
from hydra.utils import instantiate

from rag.cli import mistakes_in_one_sentence
from rag.compose import compose_config
from rag.encoders.settings import EncoderSettings
from rag.files import packed, write_aside
from rag.index.passages import PassageStore
from rag.index.readers import read_passages
from rag.minilm import minilm
from rag.tasks.dpr_json import AskedQuestion
from rag.tasks.example import Example
from rag.tasks.qa import read_examples
from rag.training.dpr import BiEncoder, DprModule, sentence_encoders
from rag.training.dpr_data import DprData
from rag.training.hard_negatives import MinedNegatives
from rag.training.optimization import Optimization
from rag.training.remining import Remining, nearest

KINDS = ("in-batch", "BM25", "re-mined beside BM25", "re-mined alone")
NEAR = (
    25  # passages that follow one another in the file, most often of one article: near misses of each other
)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.negatives", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("world", choices=("miniwiki", "text"))
    parser.add_argument("folder", type=Path, nargs="?", help="of text")
    parser.add_argument("--data", type=Path, default=Path("data"), help="the folder that holds miniwiki/")
    parser.add_argument(
        "--outputs", type=Path, default=Path("outputs/negatives"), help="for what is made once"
    )
    parser.add_argument("--steps", type=int, help="of training; 120 for miniwiki, 24 for text")
    parser.add_argument(
        "--every", type=int, help="steps between minings; a quarter, or a third, of the steps"
    )
    parser.add_argument("--passages", type=int, default=700, help="of text, on either side")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    given = parser.parse_args(arguments)
    if (given.world == "text") != (given.folder is not None):
        parser.error("text needs a folder, and miniwiki none")
    given.outputs.mkdir(parents=True, exist_ok=True)
    with mistakes_in_one_sentence():
        print(
            "| seed | negatives | recall@1 | recall@5 | recall@20 | CPU s | changed |\n|---|---|---|---|---|---|---|"
        )
        measure = miniwiki if given.world == "miniwiki" else text
        for seed in given.seeds:
            measure(given, seed)


def miniwiki(given: argparse.Namespace, seed: int) -> None:
    steps, folder = given.steps or 120, given.data / "miniwiki"
    overrides = ["experiment=miniwiki/dpr", f"seed={seed}", f"paths.data={given.data.resolve()}"]
    cfg = compose_config("train", overrides)
    pl.seed_everything(seed, verbose=False)
    module = instantiate(cfg.module)
    module.train()
    cloze = instantiate(cfg.datamodule, model=module.model, questions=None)
    fit(module, cloze, cfg.datamodule.inverse_cloze_steps)
    start = copy.deepcopy(module.model.state_dict())

    def model() -> BiEncoder:
        module.model.load_state_dict(start)
        return module.model

    every = given.every or max(1, steps // 4)
    rows = (cfg.corpus.path, folder / "train.jsonl", folder / "test.jsonl", cfg.corpus.path)
    compare(given, seed, model, rows, steps, every, batch_size=64, lr=1e-3, warmup=10, at_start=False)


def text(given: argparse.Namespace, seed: int) -> None:
    steps = given.steps or 24
    sides = [subset(given, name) for name in ("train", "dev")]
    settings = EncoderSettings(max_length=128)
    rows = (sides[0][0], sides[0][1], sides[1][1], sides[1][0])

    def model() -> BiEncoder:
        return BiEncoder(sentence_encoders(minilm(), settings=settings))

    every = given.every or max(1, steps // 3)
    compare(given, seed, model, rows, steps, every, batch_size=16, lr=3e-5, warmup=3, at_start=True)


def subset(given: argparse.Namespace, name: str) -> tuple[Path, Path]:
    """So many passages that questions of a file name, in runs of neighbours, and their questions, as two files."""
    asked = [each for each in read_examples(packed(given.folder / f"{name}.jsonl")) if each.positive_ids]
    named = list(dict.fromkeys(str(each.positive_ids[0]) for each in asked))
    runs = np.random.default_rng(7).permutation(-(-len(named) // NEAR))[: -(-given.passages // NEAR)]
    kept = {each for run in runs for each in named[run * NEAR : (run + 1) * NEAR]}
    passages = (each for each in read_passages(packed(given.folder / "passages.tsv")) if each.id in kept)
    records = (
        {"question": each.question, "answers": each.answers, "positive_ids": [str(each.positive_ids[0])]}
        for each in asked
        if str(each.positive_ids[0]) in kept
    )
    files = tuple(
        given.outputs / f"{name}-{given.passages}-{kind}.jsonl" for kind in ("passages", "questions")
    )
    texts = ({"id": each.id, "title": each.title, "text": each.text} for each in passages)
    for file, rows in zip(files, (texts, records), strict=True):
        with write_aside(file) as aside:
            aside.write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    return files[0], files[1]


def compare(
    given: argparse.Namespace,
    seed: int,
    model: Callable[[], BiEncoder],
    files: tuple[Path | str, Path, Path, Path | str],
    steps: int,
    every: int,
    *,
    batch_size: int,
    lr: float,
    warmup: int,
    at_start: bool,
) -> None:
    """A row for the start and one for each kind. files: passages and questions of training, and of the test."""
    passages, questions, asked, sought = files
    store = PassageStore.prepare(sought, given.outputs / f"{Path(sought).stem}-store", False)
    examples = read_examples(asked)
    show(seed, "none: the start", recall(model(), store, examples), 0.0, None)
    mined = MinedNegatives(30, 6)
    for kind in given.kinds:
        settings: dict[str, Any] = {"hard_negatives": 0} if kind == "in-batch" else {"mined": mined}
        if kind.startswith("re-mined"):
            alone = kind.endswith("alone")
            settings |= {"remine": every, "remining": Remining(30, 6, alone=alone, at_start=at_start)}
        pl.seed_everything(seed, verbose=False)
        encoders = model().train()
        data = DprData(passages, encoders, batch_size, questions, cache=given.outputs, seed=seed, **settings)
        data.setup()
        module = DprModule(encoders, Optimization(lr=lr, warmup_steps=warmup, schedule="linear"), seed)
        began = time.process_time()
        trainer = fit(module, data, steps)
        spent = time.process_time() - began
        changed = trainer.callback_metrics.get("train/negatives_changed")
        show(
            seed, kind, recall(encoders, store, examples), spent, None if changed is None else float(changed)
        )


def show(seed: int, kind: str, recalls: list[float], seconds: float, changed: float | None) -> None:
    cells = [str(seed), kind, *(f"{each:.3f}".removeprefix("0") for each in recalls), f"{seconds:.0f}"]
    print("| " + " | ".join([*cells, "" if changed is None else f"{changed:.2f}"]) + " |", flush=True)


def fit(module: Any, data: Any, steps: int) -> pl.Trainer:
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=1,
        max_steps=steps,
        gradient_clip_val=2.0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        check_val_every_n_epoch=None,
        val_check_interval=10**9,
        limit_val_batches=0,
    )
    trainer.fit(module, datamodule=data)
    return trainer


def recall(model: BiEncoder, store: PassageStore, examples: Sequence[Example]) -> list[float]:
    """The share of questions with a gold passage among the first 1, 5 and 20 of all."""
    golds = [np.array([store.row_of(each) for each in one.positive_ids], np.int32) for one in examples]
    asked = [AskedQuestion(one.question, gold) for one, gold in zip(examples, golds, strict=True)]
    found = nearest(model.eval(), store, asked, np.arange(len(store)), 20).numpy()
    hits = np.array([np.isin(rows, gold) for rows, gold in zip(found, golds, strict=True)])
    return [float(hits[:, :k].any(axis=1).mean()) for k in (1, 5, 20)]


if __name__ == "__main__":
    main()

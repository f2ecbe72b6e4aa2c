"""What building an index and changing one share: the encoders, and what is said at the end."""

import os
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from rich.table import Table

from rag.encoders.opening import open_passage_encoder, open_question_encoder
from rag.encoders.protocol import AnyPassageEncoder
from rag.encoders.settings import EncoderSettings
from rag.errors import UserError
from rag.index.folder import Index
from rag.index.passage import counted
from rag.safe_text import say
from rag.tasks.qa import read_examples
from rag.terminal import Terminal
from rag.training.questions import sample


def open_encoder(name: str, settings: EncoderSettings, optional: bool = False) -> AnyPassageEncoder | None:
    """The passage encoder, on a GPU if there is one; None where it may be missing and is."""
    try:
        encoder = open_passage_encoder(name, settings).eval()
    except UserError:
        if not optional:
            raise
        return None
    if torch.cuda.is_available():
        encoder.cuda(int(os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID", "0")))
    return encoder


def say_cut(encoder: AnyPassageEncoder) -> None:
    """How many of the passages that were embedded were too long for the encoder."""
    if encoder.cut:
        say(
            f"{counted(encoder.cut, 'passage')} of those embedded here ran over the passage encoder's "
            f"{encoder.max_length} tokens and was truncated; corpus.split=words splits them"
        )


def held_out_questions(cfg: DictConfig) -> Any:
    """The vectors of 400 questions at random, half of which measure recall while the others choose the search
    parameters; None where none were given.

    At random, because files are often in the order of articles, and neighbouring questions are about one thing.
    """
    if cfg.recall_questions is None:
        return None
    asker = open_question_encoder(cfg.question_encoder, instantiate(cfg.encoder)).eval()
    questions = [example.question for example in sample(read_examples(cfg.recall_questions), 400)]
    with torch.inference_mode():
        return asker(**asker.tokenize(questions)).float().numpy()


def show(index: Index, title: str) -> None:
    manifest = index.manifest
    table = Table("what", "value", title=title)
    table.add_row("passages", f"{len(index):,}")
    table.add_row("dimensions", str(index.dim))
    table.add_row("type", manifest.factory)
    table.add_row("encoder", manifest.encoder.name)
    table.add_row("vectors", manifest.vectors)
    if not manifest.recall:
        table.add_row("recall against exact search", "unknown: there are no true vectors")
    for k, value in manifest.recall.items():
        table.add_row(f"recall@{k} against exact search", f"{value:.3f}")
    table.add_row("milliseconds per query", f"{manifest.ms_per_query:.2f}")
    for name, value in manifest.seconds.items():
        table.add_row(f"seconds to {name}", f"{value:,.1f}")
    table.add_row("size on disk", f"{sum(f['bytes'] for f in manifest.files.values()) / 1e6:,.1f} MB")
    Terminal().print(table)

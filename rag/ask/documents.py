"""Questions about a folder of documents, without any training: python -m rag.ask documents=FOLDER, and from Python.

    from rag.ask import open_documents
    notes = open_documents("notes")
    reply = notes("Who built the lighthouse?")
    print(reply.answer, reply.source.file, reply.sentence) if reply.known else print("it does not say")

Passages are found by MiniLM and BM25 together (rag/retrievers/hybrid.py) and read by the reader that comes with the
project, or by any other generator. The index is kept beside the folder (rag/index/documents.py).
"""

import sys
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from rag.ask.command import check_documents, opening, quoted
from rag.ask.doubt import doubt_of_documents
from rag.ask.session import Choice, Reply, Session
from rag.compose import CONFIGS, compose_config, plain, reading
from rag.encoders.opening import open_passage_encoder
from rag.encoders.precisions import BFLOAT16
from rag.encoders.protocol import describe_encoder
from rag.encoders.reduced import InBfloat16
from rag.index.documents import cache_of, index_documents, precision_kept
from rag.index.passage import counted
from rag.int8 import to_int8
from rag.processes import cpu_has_bfloat16
from rag.safe_text import say

CONFIG = "documents"  # configs/documents.yaml
CALIBRATION = "answerability.json"  # beside it: of the project's own reader over MiniLM and BM25


@dataclass(frozen=True)
class Documents:
    """A folder that answers: call it with a question."""

    session: Session
    choice: Choice

    def __call__(self, question: str) -> Reply:
        return self.answer([question])[0]

    def answer(self, questions: list[str]) -> list[Reply]:
        """The answers to several questions, found together."""
        return self.session.answer(questions, self.choice)


def open_documents(folder: str | Path, checkpoint: str | Path | None = None, *overrides: str) -> Documents:
    """Read a folder of text and Markdown, or what changed in it since the last time, and open what answers about it.

    checkpoint: what reads; None: the project's own reader. overrides: settings of configs/documents.yaml, such as
    "n_docs=10". Raises UserError for a folder without text, and whatever else cannot be opened.
    """
    given = [f"documents={quoted(folder)}", *overrides]
    if checkpoint is not None:
        given.append(f"checkpoint={quoted(checkpoint)}")
    cfg = compose_config(CONFIG, given)
    check_documents(cfg.documents)
    say(opening(cfg), file=sys.stderr, flush=True)
    session, choice, _ = session_of(cfg)
    return Documents(session, choice)


def in_bfloat16(place: Path, asked: bool | None) -> bool:
    """Whether passages are embedded in bfloat16: as asked for; else as those of the index that is kept in `place`,
    which stays of one precision; else where the processor multiplies in it. A GPU uses half precision anyway."""
    if asked is not None:
        return asked
    there, precision = precision_kept(place)
    if there:
        return precision == BFLOAT16
    return bool(cpu_has_bfloat16()) and not torch.cuda.is_available()


def session_of(cfg: DictConfig) -> tuple[Session, Choice, dict[str, Path]]:
    """As rag/ask/session.py's `open_session`, for documents: the index is brought up to date first."""
    folder = Path(cfg.documents).expanduser()
    place = Path(cfg.index.path) if cfg.index.path is not None else cache_of(folder)
    encoder = open_passage_encoder(cfg.passage_encoder, instantiate(cfg.encoder)).eval()
    if torch.cuda.is_available():
        encoder.cuda()
    info = describe_encoder(cfg.passage_encoder, encoder)
    if in_bfloat16(place, cfg.bfloat16):
        encoder, info = InBfloat16(encoder), replace(info, precision=BFLOAT16)
    how = reading(cfg.corpus)
    index, embedded = index_documents(
        folder, encoder.encode, info, place, how, batch_size=cfg.passages_at_once
    )
    new = "unchanged since the last time" if not embedded else f"{embedded:,} of them embedded now"
    say(f"{counted(len(index), 'passage')}, {new}", file=sys.stderr, flush=True)
    OmegaConf.update(cfg, "index.path", str(place))
    OmegaConf.update(cfg, "n_docs", min(cfg.n_docs, len(index)))
    model = instantiate(plain(cfg.model)).eval()
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    doubt = doubt_of_documents(
        model, cfg.n_docs, CONFIGS / CALIBRATION, cfg.answerability, cfg.abstain, cfg.precision
    )
    if cfg.int8:
        to_int8(model.generator)
    session = Session(model, doubt)
    choice = Choice(place.resolve(), cfg.n_docs, instantiate(cfg.decoding))
    session.check(choice)
    return session, choice, {folder.resolve().name: place.resolve()}

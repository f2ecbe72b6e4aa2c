"""A trained model that is asked one question after another, each time with an index, K and decoding of its own.

What the terminal (rag/ask/__main__.py) and the page (rag/ask/page.py) share: answers with the passages they come from,
p_η(z|x) before and p(z|x,y) after the answer is known (section 2.1), the indexes on disk that fit, and the history of
a conversation as the context of its next question.
"""

import math
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig

from rag.ask.doubt import NOT_HERE, Doubt, doubt_of_run
from rag.ask.highlight import answer_sentence
from rag.decoding.alternatives import Alternative, answers_and_candidates, merged, rivals
from rag.decoding.answers import Answer
from rag.decoding.settings import Decoding
from rag.errors import UserError
from rag.evaluation.evidence import Evidence, gather, speaks
from rag.evaluation.question_words import WordKnowledge
from rag.index.folder import Index
from rag.index.passage import whole_id
from rag.index.splitting import sentences
from rag.int8 import to_int8
from rag.metrics.support import PassageWords, Support
from rag.model import RagModel
from rag.reopen import open_model
from rag.retrievers.protocol import check_depth

BETWEEN_TURNS = "\n"  # as rag/tasks/dialogue.py joins them
LEAST_SHARE = 0.15  # of p(y|x) over all answers proposed, which an answer needs to rival the best


@dataclass(frozen=True)
class Choice:
    """How a question is answered; `index` is a folder, None for a closed-book model."""

    index: Path | None
    n_docs: int
    decoding: Decoding


@dataclass(frozen=True)
class Source:
    """A passage that was read: prior p_η(z|x), posterior p(z|x,y), and under RAG-Token p(z_i|x,y_i,y_<i) of each token.

    The null document (appendix F) has neither id nor title nor text.
    """

    id: str | None
    title: str
    text: str
    prior: float
    posterior: float
    by_token: tuple[float, ...] | None

    @property
    def file(self) -> str:
        """The document that it is of, where documents are asked; else the id, without the number of a piece."""
        return whole_id(self.id or "")


@dataclass(frozen=True)
class Rival:
    """One of several answers that stand in different passages: log p(y|x) in nats, its share of p(y|x) over all answers
    that the passages propose, and the passage that it comes from most."""

    answer: str
    logprob: float
    share: float
    source: Source

    @property
    def sentence(self) -> str:
        """The sentence of its passage that holds it; "" where none does."""
        return answer_sentence(self.source.text, self.answer)


@dataclass(frozen=True)
class Reply:
    """The answer to a question, log p(y|x) in nats, the passages in the order of retrieval, and T tokens.

    others: further answers with their log p(y|x), where the decoding gives several. rivals: the best answer and those
    that stand elsewhere, where the question means several things (rag/decoding/alternatives.py). known: whether the
    answer is believed (rag/ask/doubt.py), from `threshold` of its answerability score; None where nobody asked.
    unknown_words: those of the question that the models do not know; prior_share: how much of p(z|x,y) stands where
    p(z|x) put it (rag/evaluation/evidence.py); None of a closed book or a classifier. guess: the answer that was
    withheld, where `answer` says instead that the documents do not hold one. support: of a text that was drawn
    (decoding=sample), each sentence and how much of it the passages support (rag/metrics/support.py).
    """

    question: str
    answer: str
    logprob: float
    tokens: tuple[str, ...]
    sources: tuple[Source, ...]
    others: tuple[tuple[str, float], ...] = ()
    known: bool | None = None
    score: float | None = None
    threshold: float | None = None
    unknown_words: tuple[str, ...] = ()
    prior_share: float | None = None
    rivals: tuple[Rival, ...] = ()
    guess: str | None = None
    support: tuple[tuple[str, Support], ...] = ()

    @property
    def abstained(self) -> bool:
        return self.guess is not None

    @property
    def quoted(self) -> str:
        """What passages are searched for where they are shown: the answer, or nothing where it was withheld."""
        return "" if self.abstained else self.answer

    def evidence(self) -> list[str]:
        """What speaks for or against the answer, in words; nothing of a closed book."""
        said = []
        if self.score is not None:
            said.append(f"answerability {self.score:.2f} (believed from {self.threshold:.2f})")
        if self.prior_share is not None:
            said.append(f"{self.prior_share:.0%} of p(z|x,y) is the prior's")
        if self.unknown_words:
            said.append(f"words in no passage or vocabulary: {', '.join(self.unknown_words)}")
        return said

    @property
    def source(self) -> Source | None:
        """The passage that the answer comes from most, by p(z|x,y)."""
        return max(self.sources, key=lambda source: source.posterior, default=None)

    @property
    def sentence(self) -> str:
        """The sentence of that passage that holds the answer; "" where none holds it."""
        source = self.source
        return "" if source is None else answer_sentence(source.text, self.answer)

    def record(self) -> dict[str, Any]:
        """As a line of JSON; a log-probability of −inf (nothing was retrieved) is null."""
        record: dict[str, Any] = {
            "question": self.question,
            "answer": self.answer,
            "logprob": _finite(self.logprob),
            "tokens": list(self.tokens),
            "passages": [
                {
                    "id": source.id,
                    "title": source.title,
                    "text": source.text,
                    "prior": round(source.prior, 4),
                    "posterior": round(source.posterior, 4),
                    **(
                        {}
                        if source.by_token is None
                        else {"by_token": [round(each, 4) for each in source.by_token]}
                    ),
                }
                for source in self.sources
            ],
        }
        if self.known is not None and (source := self.source) is not None:
            record |= {"known": self.known, "file": source.file, "sentence": self.sentence}
        if self.prior_share is not None:
            record |= {
                "answerability": None if self.score is None else round(self.score, 4),
                "threshold": None if self.threshold is None else round(self.threshold, 4),
                "unknown_words": list(self.unknown_words),
                "prior_share": round(self.prior_share, 4),
            }
        if self.guess is not None:
            record |= {"abstained": True, "guess": self.guess}
        if self.support:
            record["support"] = [
                {
                    "sentence": sentence,
                    "trigrams": each.ngrams,
                    "supported_trigrams": each.supported_ngrams,
                    "names": list(each.names),
                    "unsupported_names": list(each.unsupported_names),
                }
                for sentence, each in self.support
            ]
        if self.rivals:
            record["alternatives"] = [
                {
                    "answer": rival.answer,
                    "logprob": _finite(rival.logprob),
                    "share": round(rival.share, 4),
                    "passage": rival.source.id,
                    "title": rival.source.title,
                    "sentence": rival.sentence,
                }
                for rival in self.rivals
            ]
        if self.others:
            record["others"] = [
                {"answer": text, "logprob": _finite(logprob)} for text, logprob in self.others
            ]
        return record


def _finite(logprob: float) -> float | None:
    return round(logprob, 4) if math.isfinite(logprob) else None


def supported(text: str, sources: Sequence[Source]) -> Iterable[tuple[str, Support]]:
    """Each sentence of a text, and how much of it the passages support."""
    words = PassageWords(part for source in sources for part in (source.title, source.text))
    return [(each.strip(), words.of_sentence(each)) for each in sentences(text) if each.strip()]


class Session:
    """A model that answers; several threads may ask at once and are served one after the other.

    doubt: when an answer is not believed; None: nobody asks.
    """

    def __init__(self, model: RagModel, doubt: Doubt | None = None):
        self.model = model.eval()
        self.doubt = doubt or Doubt()
        self._knowledge = WordKnowledge(model) if speaks(model) else None
        self._lock = threading.Lock()
        self._opened: dict[Path, Index] = {}
        if model.retriever is not None:
            index = model.retriever.index
            self._opened[Path(index.folder).resolve()] = index

    @property
    def closed_book(self) -> bool:
        return self.model.retriever is None

    def answer(self, questions: Sequence[str], choice: Choice) -> list[Reply]:
        """The answers to a batch of questions.

        Raises UserError for a question that is empty or too long, an index that does not fit or holds fewer than K
        passages, and a decoding that contradicts itself.
        """
        with self._lock, torch.inference_mode():
            self._take(choice)
            batch = self.model.prepare(questions).to(self.model.generator.model.device)
            contexts = self.model.read(batch, choice.n_docs)
            answers, proposed = answers_and_candidates(self.model, contexts, choice.decoding)
            evidence: Sequence[Evidence | None] = [None] * len(answers)
            if self._knowledge is not None:
                best = [each[0] for each in answers]
                evidence = gather(self.model, self._knowledge, questions, contexts, best)
            several = [rivals(merged(each), LEAST_SHARE) for each in proposed]
            drawn = choice.decoding.do_sample
            return [
                self._reply(*each, drawn) for each in zip(questions, answers, evidence, several, strict=True)
            ]

    def check(self, choice: Choice) -> None:
        """Raise the UserError that `answer` would raise for this choice's index and K."""
        with self._lock:
            self._take(choice)

    def _take(self, choice: Choice) -> None:
        if choice.index is None or self.closed_book:
            return
        folder = choice.index.resolve()
        index = self._opened.get(folder) or Index.open(folder)
        check_depth(index, choice.n_docs, "K")
        if index is not self.model.retriever.index:
            self.model.retriever.swap(index)
        self._opened[folder] = index

    def _reply(
        self,
        question: str,
        answers: list[Answer],
        evidence: Evidence | None,
        several: list[Alternative],
        drawn: bool,
    ) -> Reply:
        best, *others = answers
        generator = self.model.generator
        tokens = tuple(
            "(end)" if token == generator.end_token else str(generator.tokenizer.decode([token])).strip()
            for token in best.tokens
        )
        reply = Reply(
            question,
            best.text,
            best.logprob,
            tokens,
            () if self.closed_book else tuple(self._sources(best)),
            tuple((other.text, other.logprob) for other in others),
        )
        if evidence is None:
            return reply
        reply = replace(
            reply,
            known=self.doubt.believes(evidence),
            score=self.doubt.score(evidence),
            threshold=self.doubt.threshold,
            unknown_words=evidence.unknown_words,
            prior_share=evidence.prior_share,
        )
        if drawn:
            reply = replace(reply, support=tuple(supported(best.text, reply.sources)))
        if self.doubt.abstain and not reply.known:
            return replace(reply, answer=NOT_HERE, guess=best.text, tokens=(), others=(), support=())
        if reply.known is False:
            return reply
        return replace(reply, rivals=tuple(self._rival(each) for each in several))

    def _rival(self, alternative: Alternative) -> Rival:
        answer = alternative.answer
        best = max(self._sources(answer), key=lambda source: source.posterior)
        return Rival(answer.text, alternative.logprob, alternative.share, best)

    def _sources(self, answer: Answer) -> Iterable[Source]:
        store = self.model.retriever.index.passages
        prior, posterior = answer.doc_logprobs.exp().tolist(), answer.posterior.tolist()
        by_token = None if answer.token_posterior is None else answer.token_posterior.tolist()
        for k, row in enumerate(answer.rows.tolist()):
            if row < 0 and not prior[k]:
                continue  # not found
            passage = store[row] if row >= 0 else None
            yield Source(
                passage.id if passage else None,
                passage.title if passage else "",
                passage.text if passage else "",
                prior[k],
                posterior[k],
                None if by_token is None else tuple(by_token[k]),
            )

    # -- a conversation ---------------------------------------------------------------------------

    def in_context(self, turns: Sequence[str], question: str) -> str:
        """The question after as many of the last turns as can be read with it.

        The question encoder must not cut the question, which stands last, and half of what the generator reads is
        left to the passage.
        """
        for start in range(len(turns)):
            text = BETWEEN_TURNS.join([*turns[start:], question])
            if self._fits(text):
                return text
        return question

    def _fits(self, text: str) -> bool:
        generator = self.model.generator
        if generator.tokenize_questions([text]).lengths[0] > generator.max_context_length // 2:
            return False
        return self.closed_book or self.model.retriever.reads_whole(text)


def open_session(saved: DictConfig) -> tuple[Session, Choice, dict[str, Path]]:
    """The model of a run as rag/cli.py's `from_checkpoint` gives it, how it answers, and the indexes it can search.

    Indexes are looked for beside the run's own and where build_index.py puts them. The model goes to a GPU if there
    is one.
    """
    model = open_model(saved.module)
    decoding = instantiate(saved.decoding)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    doubt = doubt_of_run(
        model, saved.checkpoint, saved.n_docs, saved.answerability, saved.abstain, saved.precision
    )
    if saved.int8:
        to_int8(model.generator)
    session = Session(model, doubt)
    if session.closed_book:
        return session, Choice(None, 1, decoding), {}
    own = Path(model.retriever.index.folder).resolve()
    indexes = find_indexes(model.retriever, [own.parent, Path(saved.paths.indexes)])
    choice = Choice(own, saved.n_docs, decoding)
    session.check(choice)
    return session, choice, indexes


def find_indexes(retriever: Any, folders: Iterable[Path]) -> dict[str, Path]:
    """Name → folder of each index inside `folders` that the retriever can search, and of its own, which comes first.

    Dense retrieval needs the vectors of its own passage encoder; where that is not known, vectors of as many
    dimensions. A folder that is no finished index is passed over.
    """
    own = Path(retriever.index.folder).resolve()
    found = [own]
    for folder in folders:
        for manifest in sorted(folder.glob("*/manifest.json")):
            index = manifest.parent.resolve()
            if index not in found and _belongs(manifest, retriever):
                found.append(index)
    names = [folder.name for folder in found]
    return {
        name if names.count(name) == 1 else f"{folder.parent.name}/{name}": folder
        for name, folder in zip(names, found, strict=True)
    }


def _belongs(file: Path, retriever: Any) -> bool:
    try:
        retriever.check_fit(Index.open(file.parent))
    except UserError:
        return False
    return True


def describe_decoding(decoding: Decoding) -> str:
    """How answers are searched for, in a few words."""
    if decoding.do_sample:
        how = f"sampling (temperature {decoding.temperature:g}, top_p {decoding.top_p:g}, top_k {decoding.top_k})"
    else:
        how = "greedy" if decoding.num_beams == 1 else f"{decoding.num_beams} beams"
    fast = "" if decoding.thorough else ", Fast"
    return f"{how}{fast}, at most {decoding.max_new_tokens} tokens"

"""BART's denoising (Lewis et al. 2019, text infilling) as reading practice: one masked run of a sentence is restored
from its passage.

    input   title / passage // sentence with <mask>          target   the whole sentence, later only the run

It has the form of the generator's later input, "title / text // question". Runs are names and numbers rather than
function words, because those are what answers are made of, and only they have to be looked up in the passage.
"""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rag.errors import UserError
from rag.generators.context import Ragged, special_tokens, token_rows
from rag.index.passage import Passage
from rag.index.readers import read_passages
from rag.index.reading import AS_USUAL, CorpusReading
from rag.model import Batch, RagModel
from rag.retrievers.protocol import Questions
from rag.tasks.example import Example
from rag.training.datamodule import StepDataModule, step_generator

FUNCTION_WORDS = frozenset(
    "a about after all also an and are as at be became been before between both but by called during each first for "
    "from had has have he her hers him his in into is it its last later many most near not of on one only or other "
    "our over same she since so some such than that the their them then there these they this those through to under "
    "until up was were when where which while who whose will with would".split()
)
ATTEMPTS = 1000  # sentences looked at for one example before the corpus is taken to have none
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
_WORD = re.compile(r"\w+")


def split_sentences(text: str) -> list[str]:
    """Cut at white space after a full stop, question or exclamation mark."""
    return _SENTENCE_END.split(text.strip())


def candidate_runs(sentence: str, title: str) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """The runs worth masking, as (start, end) offsets: (names of two or three words, other content words).

    A name is a run of capitalised words that is not part of the title.
    """
    known = {word.lower() for word in _WORD.findall(title)}
    words = [(m.start(), m.end(), m.group()) for m in _WORD.finditer(sentence)]
    names, singles, run = [], [], []

    def close() -> None:
        if 2 <= len(run) <= 3:
            names.append((run[0][0], run[-1][1]))
        run.clear()

    for word in words:
        start, end, text = word
        content = text.lower() not in FUNCTION_WORDS and text.lower() not in known
        if run and not (content and text[0].isupper() and sentence[run[-1][1] : start] == " "):
            close()
        if content:
            singles.append((start, end))
            if text[0].isupper():
                run.append(word)
    close()
    return names, singles


class DenoisingData(StepDataModule):
    """Passages → (masked sentence, target) pairs.

    All passages are held as Python objects, about a kilobyte each: a few hundred thousand do, not 21 million. A
    context that is too long loses the end of its passage; a sentence that would not fit itself is passed over.

    whole_sentence_steps: so many first steps ask for the whole sentence, the others for the masked run alone.
    name_share: how often a name of several words is masked where a sentence has one.
    absent_share: how often the sentence is taken out of the passage, so that not everything can be copied.
    """

    def __init__(
        self,
        passages: Sequence[str | Path],
        model: RagModel,
        batch_size: int,
        whole_sentence_steps: int,
        name_share: float = 0.7,
        absent_share: float = 0.15,
        num_workers: int = 0,
        seed: int = 0,
        reading: CorpusReading = AS_USUAL,
    ):
        super().__init__(num_workers)
        self.files = passages
        self.prepare_batch = model.prepare
        self.generator = model.generator
        self.batch_size = batch_size
        self.whole_sentence_steps = whole_sentence_steps
        self.name_share = name_share
        self.absent_share = absent_share
        self.seed = seed
        self.reading = reading
        self.passages: list[Passage] = []
        self.room = self.generator.max_context_length - sum(
            map(len, special_tokens(self.generator.tokenizer))
        )

    def setup(self, stage: str | None = None) -> None:
        if not self.passages:
            self.passages = [passage for path in self.files for passage in read_passages(path, self.reading)]
            if not self.generator.tokenizer.mask_token:
                raise UserError("denoising needs a tokenizer with a mask token, such as BART's")

    def sizes(self) -> dict[str, int]:
        return {"passages": len(self.passages)}

    def make_batch(self, step: int) -> tuple[list[Example], Batch]:
        random = step_generator(self.seed, step)
        # The rank's share of the steps does not change when a run goes from whole sentences to runs.
        ranks = self.trainer.world_size if self.trainer else 1
        whole = step // ranks < self.whole_sentence_steps
        triples = [self._triple(random, whole) for _ in range(self.batch_size)]
        contexts, sentences, targets = (list(column) for column in zip(*triples, strict=True))
        examples = [
            Example(f"{context}{self.generator.passage_separator}{sentence}", (target,))
            for context, sentence, target in triples
        ]
        labels, mask = self.generator.tokenize_targets(targets)
        tokens = self._join(contexts, self.generator.tokenize_questions(sentences))
        return examples, Batch(Questions([e.question for e in examples], {}), tokens, labels, mask)

    def _join(self, contexts: list[str], sentences: Ragged) -> Ragged:
        """The tokens of "title / text // sentence", the text cut where the whole would be too long."""
        ends = np.split(sentences.tokens, sentences.starts[1:])
        rows = token_rows(self.generator.tokenizer, contexts)
        return Ragged.of(
            [[*row[: self.room - len(end)], *end.tolist()] for row, end in zip(rows, ends, strict=True)]
        )

    def _triple(self, random: np.random.Generator, whole: bool) -> tuple[str, str, str]:
        """(title and passage, sentence with a masked run, target)."""
        longest = self.room // 2
        if whole:
            longest = min(longest, self.generator.max_target_length - 1)
        for _ in range(ATTEMPTS):
            passage = self.passages[random.integers(len(self.passages))]
            sentences = split_sentences(passage.text)
            number = int(random.integers(len(sentences)))
            sentence = sentences[number]
            names, singles = candidate_runs(sentence, passage.title)
            if not singles:
                continue
            pool = names if names and random.random() < self.name_share else singles
            start, end = pool[random.integers(len(pool))]
            if random.random() < self.absent_share:
                sentences = sentences[:number] + sentences[number + 1 :]
            masked = f"{sentence[:start]}{self.generator.tokenizer.mask_token}{sentence[end:]}"
            if len(token_rows(self.generator.tokenizer, [sentence])[0]) > longest:
                continue
            context = f"{passage.title}{self.generator.title_separator}{' '.join(sentences)}"
            return context, masked, sentence if whole else sentence[start:end]
        raise UserError(
            f"{ATTEMPTS:,} sentences in a row were longer than {longest} tokens or had no word worth masking: "
            "give passages of running text, or raise generator.max_context_length"
        )

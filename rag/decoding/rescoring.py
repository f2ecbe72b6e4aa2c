"""Section 2.5, Thorough: hypotheses scored under every passage, each shared prefix once."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rag import marginalize
from rag.decoding.search import SearchResult
from rag.decoding.settings import NO_TOKEN, chunks
from rag.decoding.shared_contexts import SharedContexts
from rag.generators.seq2seq import Generator
from rag.memory import numbers_at_once
from rag.model import Contexts

# How many numbers of encoder states, or of self-attention's keys and values, are held at once while hypotheses are
# scored: 256 MiB in float32, and on a GPU a 32nd of as many as it has bytes. Each step copies them.
STATES_AT_ONCE, SHARE_OF_A_GPU = 1 << 26, 32


def score_whole(
    generator: Generator,
    contexts: Contexts,
    question: Int[Tensor, " sequences"],
    tokens: Int[Tensor, "sequences tokens"],
) -> Float[Tensor, "sequences docs tokens"]:
    """log p_θ(y_i|x,z,y_<i) of sequences under every passage of their question, by a forward pass for each.

    For decoders without a cache. −inf for passages that were not found; whatever stands after a last token.
    """
    lengths = (tokens != NO_TOKEN).sum(dim=1)
    labels = tokens.masked_fill(tokens == NO_TOKEN, generator.pad_token)
    logprobs = _nothing_scored(contexts, tokens)
    order = lengths.argsort(descending=True, stable=True)
    position, doc = (contexts.doc_logprobs[question[order]] > -torch.inf).nonzero(as_tuple=True)
    sequence = order[position]
    context = question[sequence] * contexts.n_docs + doc
    for some in chunks(len(sequence), _at_once(contexts) // contexts.states[0].numel()):
        longest = int(lengths[sequence[some]].max())
        logprobs[sequence[some], doc[some], :longest], _ = generator.token_logprobs(
            contexts.states[context[some]], contexts.mask[context[some]], labels[sequence[some], :longest]
        )
    return logprobs


class Race:
    """Which hypotheses may still be among the `count` best answers of their question, for one of the K asked for.

    A hypothesis is worth at least what the passages whose own search found it make of it, and at most what its tokens
    so far are worth, were all to come certain. Whoever's most is less than the least of `count` others is out; that is
    exact, and of a trained model's hypotheses leaves few after the first tokens.
    """

    MARGIN = 1e-3  # nats: far beyond what rounding moves a score

    def __init__(
        self,
        prior: Float[Tensor, "batch docs"],
        n_docs: Sequence[int],
        question: Int[Tensor, " sequences"],
        proposed: Bool[Tensor, "sequences docs"],
        count: int,
    ):
        self.question, self.proposed, self.count = question, proposed, count
        self.grid = Grid.of(question, len(prior))
        # Of each K, log p_η(z|x) as it is among so many passages, and which hypotheses these proposed.
        self.priors = {k: marginalize.doc_logprobs(prior[:, :k])[question] for k in n_docs}
        self.runs = {k: proposed[:, :k].any(dim=1) for k in n_docs}
        self.most = torch.zeros_like(prior)[question].masked_fill(prior[question] == -torch.inf, -torch.inf)
        self.least_to_win: dict[int, Tensor] = {}
        self.open = torch.ones_like(question, dtype=torch.bool)

    def begin(
        self, sequence: Int[Tensor, " found"], doc: Int[Tensor, " found"], score: Float[Tensor, " found"]
    ) -> None:
        """What the passages that found the hypotheses make of them."""
        self.most[sequence, doc] = score.to(self.most.dtype)
        for k, prior in self.priors.items():
            known = (prior + self.most[:, :k]).masked_fill(~self.proposed[:, :k], -torch.inf)
            least = known.logsumexp(dim=1)
            by_question = least[self.grid.numbers].masked_fill(self.grid.numbers < 0, -torch.inf)
            if by_question.shape[1] < self.count:
                self.least_to_win[k] = by_question.new_full(by_question.shape[:1], -torch.inf)
            else:
                self.least_to_win[k] = by_question.topk(self.count, dim=1).values[:, -1]

    def add(
        self, sequence: Int[Tensor, " scored"], doc: Int[Tensor, " scored"], logprob: Float[Tensor, " scored"]
    ) -> None:
        """One more token of each, under a passage."""
        new = ~self.proposed[sequence, doc]
        self.most[sequence[new], doc[new]] += logprob[new].to(self.most.dtype)

    def narrow(self) -> None:
        """Drop those that cannot win any more."""
        still = torch.zeros_like(self.open)
        for k, prior in self.priors.items():
            most = (prior + self.most[:, :k]).logsumexp(dim=1)
            # NaN is not out: `generate` refuses it
            still |= self.runs[k] & ~(most < self.least_to_win[k][self.question] - self.MARGIN)
        self.open &= still


@dataclass(frozen=True)
class Hypotheses:
    """N distinct sequences, each of a question, in the order of the questions; and which of them a search found where.

    of_found: for each sequence of the search, which of the N it is; any number where `is_one` is False.
    """

    question: Int[Tensor, " sequences"]
    tokens: Int[Tensor, "sequences tokens"]  # NO_TOKEN after the last
    of_found: Int[Tensor, " found"]
    is_one: Bool[Tensor, " found"]


class PrefixScoring:
    """log p_θ(y_i|x,z,y_<i) of hypotheses under every passage, each prefix that they share once, and nothing that the
    search computed already.

    The hypotheses of a question are a tree of prefixes. The decoder goes down all trees level by level: at a level each
    context has a row for each prefix of its question, which goes on from its parent's row in the cache. What is
    expensive is normalising over the vocabulary: where the search went through a prefix from the same passage, it has
    done so.

    searched: the contexts that the search read, which `result` shares. race: a hypothesis that cannot win any more is
    not scored to its end; its log-probabilities are no use.
    """

    def __init__(
        self,
        generator: Generator,
        contexts: Contexts,
        result: SearchResult,
        searched: Int[Tensor, " searched"],
        hypotheses: Hypotheses,
        race: Race,
    ):
        self.generator, self.contexts, self.result = generator, contexts, result
        self.searched, self.hypotheses, self.race = searched, hypotheses, race
        self.output = generator.output_layer
        self.levels = _levels(hypotheses.question, hypotheses.tokens)
        self.logprobs = _nothing_scored(contexts, hypotheses.tokens)

    def run(self) -> Float[Tensor, "sequences docs tokens"]:
        shared = self.result.shared
        assert shared is not None  # else there is nothing to share: see `score_whole`
        widest = max(int(torch.bincount(level.question).max()) for level in self.levels)
        numbers = shared.numbers_for(widest * self.hypotheses.tokens.shape[1])
        for some in chunks(len(self.searched), _at_once(self.contexts) // numbers):
            self._go_down(some, shared.afresh(some))
        return self.logprobs

    def _go_down(self, some: slice, shared: SharedContexts) -> None:
        """Score the hypotheses under a few of the contexts, level by level."""
        contexts = self.searched[some]
        asked = contexts // self.contexts.n_docs
        above = None
        for i, level in enumerate(self.levels):
            self.race.narrow()
            runs_on = self.race.open & level.goes_on
            if not runs_on.any():
                break
            row = _Row.of(i, level, runs_on, asked, len(self.contexts.doc_logprobs))
            if above is None:
                step = torch.full_like(row.prefixes, self.generator.start_token)
            else:
                parents = above.column[level.parent[row.prefixes]] * row.exists
                first = torch.arange(len(asked), device=asked.device).unsqueeze(1) * above.prefixes.shape[1]
                shared.take_rows((first + parents).flatten())
                step = level.token[row.prefixes].masked_fill(~row.exists, self.generator.pad_token)
            above = row
            hidden = shared.decode(step.flatten().unsqueeze(1)).view(*step.shape, -1)
            if i >= self.result.forced:
                self._score(contexts, row, hidden, self._normalisers(some, row, hidden))

    def _normalisers(
        self, some: slice, row: "_Row", hidden: Float[Tensor, "chunk prefixes width"]
    ) -> Float[Tensor, "chunk prefixes"]:
        """The logarithm of what normalises p_θ after each prefix: the search's where it was there, else made now."""
        result, hypothesis = self.result, self.hypotheses.of_found
        known = self.hypotheses.is_one & (result.batch_row >= some.start) & (result.batch_row < some.stop)
        known &= row.runs_on[hypothesis]
        normalisers = hidden.new_full(row.prefixes.shape, torch.nan, dtype=self.logprobs.dtype)
        column = row.column[row.level.of_sequence[hypothesis[known]]]
        normalisers[result.batch_row[known] - some.start, column] = result.normalisers[known, 0, row.i]
        unknown = row.exists & normalisers.isnan()
        normalisers[unknown] = self.output.log_normalisers(hidden[unknown])
        return normalisers

    def _score(
        self,
        contexts: Int[Tensor, " chunk"],
        row: "_Row",
        hidden: Float[Tensor, "chunk prefixes width"],
        normalisers: Float[Tensor, "chunk prefixes"],
    ) -> None:
        """The next token of every hypothesis that runs on, under each context of its question."""
        sequences = self.race.grid.numbers[contexts // self.contexts.n_docs]
        of, at = ((sequences >= 0) & row.runs_on[sequences.clamp(min=0)]).nonzero(as_tuple=True)
        sequence, doc = sequences[of, at], contexts[of] % self.contexts.n_docs
        column = row.column[row.level.of_sequence[sequence]]
        logits = self.output.token_logits(hidden[of, column], self.hypotheses.tokens[sequence, row.i])
        of_token = logits - normalisers[of, column]
        self.logprobs[sequence, doc, row.i] = of_token
        self.race.add(sequence, doc, of_token)


@dataclass(frozen=True)
class _Row:
    """At level i, the prefixes that go on, laid out in a row for each context: where their hidden states stand."""

    i: int
    level: "_Level"
    runs_on: Bool[Tensor, " sequences"]  # hypotheses that have a token here and may still win
    prefixes: Int[Tensor, "chunk most"]  # any prefix where a question has fewer than the most
    exists: Bool[Tensor, "chunk most"]
    column: Int[Tensor, " prefixes"]  # of each prefix in its question's row; 0 for those that do not go on

    @classmethod
    def of(
        cls,
        i: int,
        level: "_Level",
        runs_on: Bool[Tensor, " sequences"],
        asked: Int[Tensor, " chunk"],
        batch: int,
    ) -> "_Row":
        """asked: the question of each context; batch: how many questions there are."""
        kept = torch.unique(level.of_sequence[runs_on])
        grid = Grid.of(level.question[kept], batch)
        column = torch.zeros_like(level.question)
        column[kept] = grid.column
        numbers = grid.numbers[asked]
        return cls(i, level, runs_on, kept[numbers.clamp(min=0)], numbers >= 0, column)


@dataclass(frozen=True)
class Grid:
    """Things that belong to questions, and are numbered in the order of these, laid out in a row for each question."""

    numbers: Int[Tensor, "batch most"]  # −1 where a question has fewer than the most
    column: Int[Tensor, " things"]  # each thing's place in its question's row

    @classmethod
    def of(cls, question: Int[Tensor, " things"], batch: int) -> "Grid":
        counts = torch.bincount(question, minlength=batch)
        column = torch.arange(len(question), device=question.device) - (counts.cumsum(0) - counts)[question]
        numbers = question.new_full((batch, int(counts.max())), -1)
        numbers[question, column] = torch.arange(len(question), device=question.device)
        return cls(numbers, column)


@dataclass(frozen=True)
class _Level:
    """The distinct prefixes of i tokens that sequences go on from, in the order of their questions."""

    question: Int[Tensor, " prefixes"]
    token: Int[Tensor, " prefixes"]  # the last of each; nothing at the first level, where there is none
    parent: Int[Tensor, " prefixes"]  # what comes before it, one level up
    goes_on: Bool[Tensor, " sequences"]  # whether a sequence has a token after this prefix
    of_sequence: Int[Tensor, " sequences"]  # its prefix; 0 for those that end before


def _levels(question: Int[Tensor, " sequences"], tokens: Int[Tensor, "sequences tokens"]) -> list[_Level]:
    levels: list[_Level] = []
    before = question  # of each sequence, what its prefix goes on from
    for i in range(tokens.shape[1]):
        goes_on = tokens[:, i] != NO_TOKEN
        key = before * (tokens.max() + 1) + tokens[:, i - 1].clamp(min=0) if i else question
        # Sorted: the prefixes of a question stay together.
        _, of_those = torch.unique(key[goes_on], return_inverse=True)
        of_sequence = torch.zeros_like(question)
        of_sequence[goes_on] = of_those
        one = question.new_zeros(int(of_those.max()) + 1)  # a sequence for each prefix
        one[of_those] = goes_on.nonzero().squeeze(1)
        parent = before[one] if i else torch.zeros_like(one)
        token = tokens[one, i - 1] if i else torch.zeros_like(one)
        levels.append(_Level(question[one], token, parent, goes_on, of_sequence))
        before = of_sequence
    return levels


def _at_once(contexts: Contexts) -> int:
    return numbers_at_once(contexts.states.device, STATES_AT_ONCE, SHARE_OF_A_GPU)


def _nothing_scored(
    contexts: Contexts, tokens: Int[Tensor, "sequences tokens"]
) -> Float[Tensor, "sequences docs tokens"]:
    dtype = torch.promote_types(contexts.states.dtype, torch.float32)
    shape = (len(tokens), contexts.n_docs, tokens.shape[1])
    return contexts.states.new_full(shape, -torch.inf, dtype=dtype)

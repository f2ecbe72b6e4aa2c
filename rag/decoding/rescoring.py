"""Section 2.5, Thorough: hypotheses scored under every passage, each shared prefix once."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rag import marginalize
from rag.decoding import shared_contexts as cross_attention
from rag.decoding.search import SearchResult
from rag.decoding.settings import NO_TOKEN, chunks
from rag.decoding.shared_contexts import CrossKeys
from rag.generators.seq2seq import Generator
from rag.model import Contexts

# How many numbers of encoder states, or of self-attention's keys and values, are held at once while hypotheses are
# scored: 256 MiB in float32.
STATES_AT_ONCE = 1 << 26


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
    place, doc = (contexts.doc_logprobs[question[order]] > -torch.inf).nonzero(as_tuple=True)
    sequence = order[place]
    context = question[sequence] * contexts.n_docs + doc
    for some in chunks(len(sequence), STATES_AT_ONCE // contexts.states[0].numel()):
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
        self.own = Grid.of(question, len(prior))
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
            by_question = least[self.own.numbers].masked_fill(self.own.numbers < 0, -torch.inf)
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


def score_by_prefix(
    generator: Generator,
    contexts: Contexts,
    found: SearchResult,
    keys: CrossKeys,
    searched: Int[Tensor, " searched"],
    found_as: Int[Tensor, " found"],
    question: Int[Tensor, " sequences"],
    tokens: Int[Tensor, "sequences tokens"],
    race: Race,
) -> Float[Tensor, "sequences docs tokens"]:
    """The same, each prefix that sequences share once, and nothing that the search computed already.

    The sequences of a question are a tree of prefixes. The decoder goes down all trees level by level: at a level each
    context has a row for each prefix of its question, which goes on from its parent's row in the cache. What is
    expensive is normalising over the vocabulary: where the search went through a prefix from the same passage, it has
    done so.

    question: ascending. searched: the contexts whose keys these are, those that were found. found_as: which sequence
    each that was found is; −1 for none. race: what cannot win any more is not scored to its end; the log-probabilities
    of those sequences are no use.
    """
    docs, batch = contexts.n_docs, len(contexts.doc_logprobs)
    levels = _levels(question, tokens)
    logprobs = _nothing_scored(contexts, tokens)
    widest = max(int(torch.bincount(level.question).max()) for level in levels)
    at_once = STATES_AT_ONCE // (widest * tokens.shape[1] * keys.numbers_per_token)
    decoder, output = generator.model.get_decoder(), generator.output_layer
    for some in chunks(len(searched), at_once):
        chunk = searched[some]
        asked, doc = chunk // docs, chunk % docs
        cache = keys[some].cache()
        rows_before, place_before = 1, torch.zeros_like(question)
        for i, level in enumerate(levels):
            race.narrow()
            runs_on = race.open & (level.of_sequence >= 0)
            if not runs_on.any():
                break
            kept = torch.unique(level.of_sequence[runs_on])  # prefixes
            grid = Grid.of(level.question[kept], batch)
            place_of = torch.full_like(level.question, -1)
            place_of[kept] = grid.place
            prefixes = kept[grid.numbers[asked]]  # (chunk, prefixes of a question); any where there are fewer
            exists = grid.numbers[asked] >= 0
            if i > 0:
                parents = place_before[level.parent[prefixes]] * exists
                first = torch.arange(len(chunk), device=chunk.device).unsqueeze(1) * rows_before
                cross_attention.take_rows(cache, (first + parents).flatten())
                step = level.token[prefixes].masked_fill(~exists, generator.pad_token)
            else:
                step = torch.full_like(prefixes, generator.start_token)
            rows_before, place_before = prefixes.shape[1], place_of
            hidden = cross_attention.decode(
                decoder, step.flatten().unsqueeze(1), contexts.states[chunk], contexts.mask[chunk], cache
            ).view(*prefixes.shape, -1)
            if i < found.forced:
                continue

            normalisers = hidden.new_full(prefixes.shape, torch.nan, dtype=logprobs.dtype)
            here = (found.batch_row >= some.start) & (found.batch_row < some.stop) & (found_as >= 0)
            here &= runs_on[found_as]
            place = place_of[level.of_sequence[found_as[here]]]
            normalisers[found.batch_row[here] - some.start, place] = found.normalisers[here, 0, i]
            unknown = exists & normalisers.isnan()
            normalisers[unknown] = output.log_normalisers(hidden[unknown])

            sequences = race.own.numbers[asked]
            row, at = ((sequences >= 0) & runs_on[sequences]).nonzero(as_tuple=True)
            sequence = sequences[row, at]
            place = place_of[level.of_sequence[sequence]]
            logits = output.token_logits(hidden[row, place], tokens[sequence, i])
            of_token = logits - normalisers[row, place]
            logprobs[sequence, doc[row], i] = of_token
            race.add(sequence, doc[row], of_token)
    return logprobs


@dataclass(frozen=True)
class Grid:
    """Things that belong to questions, and are numbered in the order of these, laid out in a row for each question."""

    numbers: Int[Tensor, "batch most"]  # −1 where a question has fewer than the most
    place: Int[Tensor, " things"]  # each thing's place in its question's row

    @classmethod
    def of(cls, question: Int[Tensor, " things"], batch: int) -> "Grid":
        counts = torch.bincount(question, minlength=batch)
        place = torch.arange(len(question), device=question.device) - (counts.cumsum(0) - counts)[question]
        numbers = question.new_full((batch, int(counts.max())), -1)
        numbers[question, place] = torch.arange(len(question), device=question.device)
        return cls(numbers, place)


@dataclass(frozen=True)
class _Level:
    """The distinct prefixes of i tokens that sequences go on from, in the order of their questions."""

    question: Int[Tensor, " prefixes"]
    token: Int[Tensor, " prefixes"]  # the last of each
    parent: Int[Tensor, " prefixes"]  # what comes before it, one level up
    of_sequence: Int[Tensor, " sequences"]  # each sequence's prefix; −1 for those that end before


def _levels(question: Int[Tensor, " sequences"], tokens: Int[Tensor, "sequences tokens"]) -> list[_Level]:
    levels: list[_Level] = []
    before = question  # of each sequence, what its prefix goes on from
    for i in range(tokens.shape[1]):
        goes_on = tokens[:, i] != NO_TOKEN
        key = before * (tokens.max() + 1) + tokens[:, i - 1] if i else question
        # Sorted: the prefixes of a question stay together.
        _, of_those = torch.unique(key[goes_on], return_inverse=True)
        of_sequence = torch.full_like(question, -1)
        of_sequence[goes_on] = of_those
        one = question.new_zeros(int(of_those.max()) + 1)  # a sequence for each prefix
        one[of_those] = goes_on.nonzero().squeeze(1)
        parent = before[one] if i else torch.zeros_like(one)
        levels.append(_Level(question[one], tokens[one, i - 1], parent, of_sequence))
        before = of_sequence
    return levels


def _nothing_scored(
    contexts: Contexts, tokens: Int[Tensor, "sequences tokens"]
) -> Float[Tensor, "sequences docs tokens"]:
    dtype = torch.promote_types(contexts.states.dtype, torch.float32)
    shape = (len(tokens), contexts.n_docs, tokens.shape[1])
    return contexts.states.new_full(shape, -torch.inf, dtype=dtype)

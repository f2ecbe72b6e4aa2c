"""rag/decoding against exhaustive enumeration, transformers' own generation, and itself batched otherwise.

The vocabulary has six tokens, so that every answer of at most three can be listed and scored: by a plain
forward pass of transformers' model for each passage alone, without padding, cache, beams or a line of the
code under test.
"""

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np
import pytest
import tokenizers
import torch
from torch import Tensor, nn
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    LogitsProcessor,
    LogitsProcessorList,
    MarianConfig,
    MarianMTModel,
    PreTrainedTokenizerFast,
    StoppingCriteria,
    StoppingCriteriaList,
    T5Config,
    T5ForConditionalGeneration,
)
from transformers.generation.streamers import BaseStreamer

import rag.decoding.rescoring
import rag.generators.seq2seq
from rag import marginalize
from rag.decoding.answers import Answer
from rag.decoding.generation import generate, generate_for_each
from rag.decoding.settings import Decoding
from rag.decoding.shared_contexts import SharedCrossAttention
from rag.errors import UserError
from rag.generators.context import Ragged
from rag.generators.output_layer import PlainOutputLayer
from rag.generators.seq2seq import Generator
from rag.model import ClosedBook, Contexts, RagModel, RagSequence, RagToken
from rag.retrievers.protocol import Questions, Retrieved

BOS, PAD, EOS, A, B, C = range(6)
PASSAGES = [[A, B], [C, C, A, B], [B], [A, A, C], [C], [B, C, B, A, A]]
QUESTIONS = ["a", "b a c", "c c", "b"]
# Longer than any answer of three tokens; the beams are then all answers there are.
ALL = 200


# -- a tiny world ----------------------------------------------------------------------------------


class TinyIndex:
    """The part of an index that reading passages needs."""

    def tokens(self, tokenizer: object, *_: str) -> "TinyIndex":
        return self

    def gather(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        passages = Ragged.of([PASSAGES[row] if row >= 0 else [] for row in rows])
        return passages.tokens, passages.lengths


class TinyRetriever(nn.Module):
    """Passages and scores drawn once for each question, whatever else is in the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.index = TinyIndex()
        draw = np.random.default_rng(0)
        self.rows = {question: draw.permutation(len(PASSAGES)) for question in QUESTIONS}
        self.scores = {question: draw.normal(size=len(PASSAGES)) for question in QUESTIONS}

    def prepare(self, questions: list[str]) -> Questions:
        return Questions(questions, {})

    def forward(self, questions: Questions, n_docs: int) -> Retrieved:
        rows = np.stack([self.rows[question][:n_docs] for question in questions.text])
        scores = np.stack([self.scores[question][:n_docs] for question in questions.text]).astype(np.float32)
        return Retrieved(rows, torch.from_numpy(np.where(rows < 0, -np.inf, scores)))


def tokenizer() -> PreTrainedTokenizerFast:
    words = {word: token for token, word in enumerate(["<s>", "<pad>", "</s>", "a", "b", "c"])}
    plain = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="c"))
    plain.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    plain.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", BOS), ("</s>", EOS)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=plain, bos_token="<s>", pad_token="<pad>", eos_token="</s>"
    )


def bart() -> BartForConditionalGeneration:
    model = BartForConditionalGeneration(
        BartConfig(
            vocab_size=6,
            d_model=16,
            encoder_layers=1,
            decoder_layers=2,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=16,
            decoder_ffn_dim=16,
            max_position_embeddings=64,
            init_std=0.5,
            bos_token_id=BOS,
            pad_token_id=PAD,
            eos_token_id=EOS,
            decoder_start_token_id=EOS,
            forced_eos_token_id=None,
        )
    ).eval()
    nn.init.normal_(model.final_logits_bias, std=0.3)
    # Enough ends and no padding: random weights would repeat one token for ever.
    model.final_logits_bias[0, [PAD, EOS]] += torch.tensor([-8.0, 3.0])
    return model


def t5() -> T5ForConditionalGeneration:
    return T5ForConditionalGeneration(
        T5Config(
            vocab_size=6,
            d_model=16,
            d_kv=8,
            d_ff=16,
            num_layers=2,
            num_heads=2,
            initializer_factor=1.5,
            pad_token_id=PAD,
            eos_token_id=EOS,
            decoder_start_token_id=PAD,
        )
    ).eval()


def make(kind: type[RagModel], backbone: nn.Module | None = None) -> RagModel:
    generator = Generator(backbone or bart(), tokenizer(), passage_separator=" c ")
    model = ClosedBook(generator) if kind is ClosedBook else kind(TinyRetriever(), generator, n_docs=3)
    return model.eval()


def read(model: RagModel, questions: Sequence[str] = QUESTIONS, n_docs: int = 3) -> Contexts:
    with torch.no_grad():
        return model.read(model.prepare(questions), n_docs)


def ask(
    model: RagModel,
    decoding: Decoding,
    questions: Sequence[str] = QUESTIONS,
    n_docs: int = 3,
    **generate_kwargs,
) -> list[list[Answer]]:
    return generate(model, read(model, questions, n_docs), decoding, **generate_kwargs)


# -- the same by listing every answer --------------------------------------------------------------


def context(model: RagModel, question: str, row: int) -> Tensor:
    """The tokens of one context, put together by hand: (1, length)."""
    own = model.generator.tokenizer(question, add_special_tokens=False)["input_ids"]
    return torch.tensor([[BOS, *PASSAGES[row], C, *own, EOS]])


def token_logprobs(
    model: RagModel, question: str, answers: Sequence[tuple[int, ...]], n_docs: int = 3
) -> Tensor:
    """log p_θ(y_i|x,z,y_<i), zero after an answer's end: (answers, docs, tokens). One passage at a time."""
    bart = model.generator.model
    longest = max(map(len, answers))
    padded = torch.tensor([[*answer, *[PAD] * (longest - len(answer))] for answer in answers])
    real = torch.tensor([[position < len(answer) for position in range(longest)] for answer in answers])
    start = torch.full((len(answers), 1), bart.config.decoder_start_token_id)
    scores = []
    for row in model.retriever.rows[question][:n_docs]:
        with torch.no_grad():
            logits = bart(
                input_ids=context(model, question, row).expand(len(answers), -1),
                decoder_input_ids=torch.cat([start, padded[:, :-1]], dim=1),
                use_cache=False,
            ).logits
        scores.append(logits.log_softmax(-1).gather(-1, padded.unsqueeze(-1)).squeeze(-1) * real)
    return torch.stack(scores, dim=1)


def prior(model: RagModel, question: str, n_docs: int = 3) -> Tensor:
    return torch.tensor(model.retriever.scores[question][:n_docs], dtype=torch.float32).log_softmax(0)


def marginal(model: RagModel, question: str, answers: Sequence[tuple[int, ...]], n_docs: int = 3) -> Tensor:
    """log p(y|x) of some answers, from the formula of section 2.1."""
    tokens, docs = token_logprobs(model, question, answers, n_docs), prior(model, question, n_docs)
    if isinstance(model, RagSequence):
        return (docs + tokens.sum(dim=2)).logsumexp(dim=1)
    # log Σ_z p(z) · 1 = 0 after an answer's end, so padding adds nothing
    return (docs.unsqueeze(1) + tokens).logsumexp(dim=1).sum(dim=1)


def every_answer(longest: int) -> list[tuple[int, ...]]:
    """Every sequence that ends with EOS within `longest` tokens, and all of that length that do not."""
    words = [token for token in range(6) if token != EOS]
    ended = [(*start, EOS) for length in range(longest) for start in itertools.product(words, repeat=length)]
    return ended + list(itertools.product(words, repeat=longest))


def by_score(
    answers: Sequence[tuple[int, ...]], logprobs: Tensor, count: int
) -> list[tuple[tuple[int, ...], float]]:
    best = logprobs.topk(count)
    return [
        (answers[index], score)
        for score, index in zip(best.values.tolist(), best.indices.tolist(), strict=True)
    ]


def pairs(answers: list[Answer]) -> list[tuple[tuple[int, ...], float]]:
    return [(answer.tokens, answer.logprob) for answer in answers]


def assert_same(ours: list[list[Answer]], theirs: list[list[Answer]], rtol: float = 1e-5) -> None:
    """The same answers with the same probabilities, whatever the floating-point order of their making."""
    assert [[answer.tokens for answer in answers] for answers in ours] == [
        [answer.tokens for answer in answers] for answers in theirs
    ]
    for one, other in zip(itertools.chain(*ours), itertools.chain(*theirs), strict=True):
        assert one.text == other.text
        assert one.logprob == pytest.approx(other.logprob, rel=rtol)
        torch.testing.assert_close(one.doc_scores, other.doc_scores, rtol=rtol, atol=1e-5)
        torch.testing.assert_close(one.posterior, other.posterior, rtol=rtol, atol=1e-5)
        np.testing.assert_array_equal(one.rows, other.rows)


GREEDY = Decoding(max_new_tokens=5)
BEAM = Decoding(max_new_tokens=5, num_beams=3, num_return_sequences=3)
FAST = dataclasses.replace(BEAM, thorough=False)
FAST_GREEDY = dataclasses.replace(GREEDY, thorough=False)
MODES = [
    pytest.param(RagToken, GREEDY, id="token-greedy"),
    pytest.param(RagToken, BEAM, id="token-beam"),
    pytest.param(RagSequence, GREEDY, id="thorough-greedy"),
    pytest.param(RagSequence, BEAM, id="thorough-beam"),
    pytest.param(RagSequence, FAST_GREEDY, id="fast-greedy"),
    pytest.param(RagSequence, FAST, id="fast-beam"),
]


# -- the right answers -----------------------------------------------------------------------------


@pytest.mark.parametrize("question", QUESTIONS)
def test_thorough_equals_exhaustive_scoring(question: str) -> None:
    model = make(RagSequence)
    answers = every_answer(3)
    expected = by_score(answers, marginal(model, question, answers), 12)
    found = ask(model, Decoding(max_new_tokens=3, num_beams=ALL, num_return_sequences=12), [question])[0]
    assert [tokens for tokens, _ in pairs(found)] == [tokens for tokens, _ in expected]
    assert [score for _, score in pairs(found)] == pytest.approx([score for _, score in expected], rel=1e-5)


@pytest.mark.parametrize("question", QUESTIONS)
def test_token_beams_equal_exhaustive_scoring(question: str) -> None:
    model = make(RagToken)
    answers = every_answer(3)
    expected = by_score(answers, marginal(model, question, answers), 12)
    decoding = Decoding(max_new_tokens=3, num_beams=ALL, num_return_sequences=12, length_penalty=0.0)
    found = ask(model, decoding, [question])[0]
    assert [tokens for tokens, _ in pairs(found)] == [tokens for tokens, _ in expected]
    assert [score for _, score in pairs(found)] == pytest.approx([score for _, score in expected], rel=1e-5)


def test_every_answer_of_three_tokens_has_probability_one_in_all() -> None:
    """Cut answers stand for all that begin so: with them nothing of the probability is missing."""
    for kind in (RagSequence, RagToken):
        model = make(kind)
        assert marginal(model, QUESTIONS[0], every_answer(3)).logsumexp(0).item() == pytest.approx(
            0, abs=1e-5
        )
    found = ask(
        make(RagSequence), Decoding(max_new_tokens=2, num_beams=ALL, num_return_sequences=ALL), QUESTIONS[:1]
    )[0]
    assert sum(np.exp(answer.logprob) for answer in found) == pytest.approx(1, rel=1e-5)


def test_token_greedy_takes_the_best_next_token() -> None:
    model = make(RagToken)
    for question, (found,) in zip(QUESTIONS, ask(model, Decoding(max_new_tokens=4)), strict=True):
        tokens: tuple[int, ...] = ()
        while len(tokens) < 4 and EOS not in tokens:
            following = [(*tokens, token) for token in range(6)]
            tokens = following[int(marginal(model, question, following).argmax())]
        assert found.tokens == tokens


@pytest.mark.parametrize("decoding", [FAST, FAST_GREEDY, dataclasses.replace(FAST, length_penalty=2.5)])
def test_fast_sums_over_the_beams_that_hold_the_answer(decoding: Decoding) -> None:
    model = make(RagSequence)
    decoding = dataclasses.replace(decoding, num_return_sequences=100 if decoding.num_beams > 1 else 1)
    for question, found in zip(QUESTIONS, ask(model, decoding), strict=True):
        expected: dict[tuple[int, ...], Tensor] = {}
        for doc, row in enumerate(model.retriever.rows[question][:3]):
            extra = {"length_penalty": decoding.length_penalty} if decoding.num_beams > 1 else {}
            sequences = model.generator.model.generate(
                context(model, question, row),
                max_new_tokens=decoding.max_new_tokens,
                num_beams=decoding.num_beams,
                num_return_sequences=decoding.num_beams,
                **extra,
            )
            for sequence in sequences.tolist():
                tokens = tuple(sequence[1:])
                tokens = tokens[: tokens.index(EOS) + 1] if EOS in tokens else tokens
                scores = expected.setdefault(tokens, torch.full((3,), -torch.inf))
                scores[doc] = token_logprobs(model, question, [tokens])[0, doc].sum()
        logprobs = {
            tokens: float((prior(model, question) + scores).logsumexp(0))
            for tokens, scores in expected.items()
        }
        ranking = sorted(logprobs, key=lambda tokens: -logprobs[tokens])[: decoding.num_return_sequences]
        assert [answer.tokens for answer in found] == ranking
        for answer in found:
            assert answer.logprob == pytest.approx(logprobs[answer.tokens], rel=1e-5)
            torch.testing.assert_close(answer.doc_scores, expected[answer.tokens], rtol=1e-5, atol=1e-5)


def test_fast_equals_thorough_where_every_beam_holds_everything() -> None:
    model = make(RagSequence)
    thorough = Decoding(max_new_tokens=2, num_beams=60, num_return_sequences=8)
    assert_same(ask(model, thorough), ask(model, dataclasses.replace(thorough, thorough=False)))


@pytest.mark.parametrize(("kind", "decoding"), MODES)
def test_logprob_and_scores_are_the_model_s_own(kind: type[RagModel], decoding: Decoding) -> None:
    model = make(kind)
    for question, answers in zip(QUESTIONS, ask(model, decoding), strict=True):
        for answer in answers:
            scores = token_logprobs(model, question, [answer.tokens])[0].sum(dim=1)
            known = answer.doc_scores > -torch.inf
            assert known.any() and (known.all() or not decoding.thorough)
            torch.testing.assert_close(answer.doc_scores[known], scores[known], rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(answer.doc_logprobs, prior(model, question))
            if decoding.thorough:
                expected = marginal(model, question, [answer.tokens]).item()
                assert answer.logprob == pytest.approx(expected, rel=1e-5)
            joint = answer.doc_logprobs + answer.doc_scores
            torch.testing.assert_close(answer.posterior, joint.softmax(0))
            np.testing.assert_array_equal(answer.rows, model.retriever.rows[question][:3])
            assert answer.text == " ".join("abc"[token - A] for token in answer.tokens if token >= A)


def test_token_posterior_is_bayes_rule() -> None:
    model = make(RagToken)
    for question, (answer,) in zip(QUESTIONS, ask(model, GREEDY), strict=True):
        joint = prior(model, question).unsqueeze(1) + token_logprobs(model, question, [answer.tokens])[0]
        assert answer.token_posterior is not None
        torch.testing.assert_close(answer.token_posterior, joint.exp() / joint.exp().sum(0))
    assert ask(make(RagSequence), GREEDY)[0][0].token_posterior is None


# -- against transformers' own generation ----------------------------------------------------------


@pytest.mark.parametrize("kind", [RagToken, RagSequence, ClosedBook])
@pytest.mark.parametrize("backbone", [bart, t5])
@pytest.mark.parametrize(
    "decoding",
    [
        GREEDY,
        dataclasses.replace(BEAM, length_penalty=0.0),
        Decoding(max_new_tokens=6, min_new_tokens=3, num_beams=2),
    ],
)
def test_one_passage_is_plain_generation(kind: type[RagModel], backbone, decoding: Decoding) -> None:
    model = make(kind, backbone())
    plain = model.generator.model
    for question, answers in zip(QUESTIONS, ask(model, decoding, n_docs=1), strict=True):
        if kind is ClosedBook:
            own = model.generator.tokenizer(question)["input_ids"]
            ids = torch.tensor([own])
        else:
            ids = context(model, question, model.retriever.rows[question][0])
        extra = {"length_penalty": decoding.length_penalty} if decoding.num_beams > 1 else {}
        expected = plain.generate(
            ids,
            max_new_tokens=decoding.max_new_tokens,
            min_new_tokens=decoding.min_new_tokens or None,
            num_beams=decoding.num_beams,
            num_return_sequences=decoding.num_return_sequences,
            output_logits=True,
            return_dict_in_generate=True,
            **extra,
        )
        logprobs = plain.compute_transition_scores(
            expected.sequences,
            expected.logits,
            getattr(expected, "beam_indices", None),
            normalize_logits=True,
        ).sum(dim=1)
        sequences = [tuple(sequence) for sequence in expected.sequences[:, 1:].tolist()]
        sequences = [tokens[: tokens.index(EOS) + 1] if EOS in tokens else tokens for tokens in sequences]
        # RAG-Sequence ranks by probability alone; with min_new_tokens beams are ranked by what the
        # processor left.
        expected_pairs = dict(zip(sequences, logprobs.tolist(), strict=True))
        found = pairs(answers)
        if kind is RagSequence and decoding.min_new_tokens:
            assert found[0][1] >= max(expected_pairs.values()) - 1e-5
            continue
        assert [tokens for tokens, _ in found] == sequences
        assert [score for _, score in found] == pytest.approx(list(expected_pairs.values()), rel=1e-4)


def test_forced_tokens_of_the_generator_are_honoured() -> None:
    model = make(RagToken)
    plain = model.generator.model
    plain.generation_config.forced_bos_token_id = BOS
    plain.generation_config.forced_eos_token_id = EOS
    plain.final_logits_bias[0, EOS] = -9.0  # it would not end by itself
    for kind in (RagToken, RagSequence):
        model = make(kind, plain)
        for decoding in (GREEDY, FAST_GREEDY, BEAM, FAST):
            for question, answers in zip(QUESTIONS, ask(model, decoding, n_docs=1), strict=True):
                ids = context(model, question, model.retriever.rows[question][0])
                expected = plain.generate(
                    ids,
                    max_new_tokens=6,  # there, the forced first token is one of them
                    num_beams=decoding.num_beams,
                    num_return_sequences=decoding.num_return_sequences,
                )
                expected = {tuple(sequence) for sequence in expected[:, 2:].tolist()}
                assert {answer.tokens for answer in answers} == expected
                for answer in answers:
                    assert len(answer.tokens) == 5 and answer.tokens[-1] == EOS  # and the forced first token
                    with_first = token_logprobs(model, question, [(BOS, *answer.tokens)], n_docs=1)[0, 0]
                    assert answer.logprob == pytest.approx(with_first[1:].sum().item(), rel=1e-5)
                    if answer.token_posterior is not None:
                        assert answer.token_posterior.shape == (1, 5)


def test_a_first_token_forced_by_an_argument_is_not_scored() -> None:
    for kind in (RagToken, RagSequence):
        model = make(kind)
        for question, (answer,) in zip(QUESTIONS, ask(model, GREEDY, forced_bos_token_id=BOS), strict=True):
            scores = token_logprobs(model, question, [(BOS, *answer.tokens)])[0, :, 1:]
            torch.testing.assert_close(answer.doc_scores, scores.sum(dim=1), rtol=1e-5, atol=1e-5)


def marian(padding: float) -> MarianMTModel:
    """Its decoder starts with the padding token, as T5's does; `padding` is what the token's score is raised by."""
    config = MarianConfig(
        vocab_size=6,
        d_model=16,
        encoder_layers=1,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        max_position_embeddings=64,
        init_std=0.5,
        pad_token_id=PAD,
        eos_token_id=EOS,
        decoder_start_token_id=PAD,
        forced_eos_token_id=None,
    )
    model = MarianMTModel(config).eval()
    model.final_logits_bias[0, PAD] = padding
    return model


@pytest.mark.parametrize("kind", [RagSequence, RagToken])
@pytest.mark.parametrize("padding", [0.0, 50.0])
def test_padding_that_is_generated_is_part_of_the_answer(kind: type[RagModel], padding: float) -> None:
    """Without beams it looks like what fills a row that ended; with beams `generate` says which is which."""
    model = make(kind, marian(padding))
    for thorough in (True, False):
        greedy = dataclasses.replace(GREEDY, thorough=thorough)
        found = ask(model, greedy)
        if padding:
            assert all(answer.tokens == (PAD,) * 5 for answers in found for answer in answers)
            assert_same(found, ask(model, dataclasses.replace(greedy, num_beams=2)))
        for question, (answer,) in zip(QUESTIONS, found, strict=True):
            scores = token_logprobs(model, question, [answer.tokens])[0].sum(dim=1)
            if thorough:
                torch.testing.assert_close(answer.doc_scores, scores, rtol=1e-5, atol=1e-5)
        ask(model, dataclasses.replace(greedy, do_sample=True, num_return_sequences=4))


@pytest.mark.parametrize("forced", [BOS, PAD, EOS, A])
def test_t5_with_any_forced_first_token(forced: int) -> None:
    for kind in (RagSequence, RagToken):
        for bias in (None, PAD):
            model = make(kind, t5())
            model.generator.model.generation_config.forced_bos_token_id = forced
            if bias is not None:
                with torch.no_grad():  # padding is what it likes best
                    model.generator.model.lm_head.weight[PAD] *= 4
            for decoding in (GREEDY, FAST_GREEDY, BEAM):
                answers = ask(model, decoding)
                assert all(forced == EOS or answer.tokens for (answer, *_) in answers)


def test_a_forced_first_token_takes_none_of_the_tokens_asked_for() -> None:
    """An answer of one token is possible, one of min_new_tokens is as long, and the positions are counted with it."""
    for kind in (RagToken, RagSequence):
        model = make(kind)
        plain = model.generator.model
        plain.generation_config.forced_bos_token_id = BOS
        plain.final_logits_bias[0, EOS] = -9.0
        for decoding in (GREEDY, BEAM):
            one = dataclasses.replace(decoding, max_new_tokens=1, num_return_sequences=1)
            assert {len(answer.tokens) for (answer,) in ask(model, one)} == {1}
            plain.final_logits_bias[0, EOS] = 90.0
            least = dataclasses.replace(decoding, min_new_tokens=3)
            assert {len(answer.tokens) for answers in ask(model, least) for answer in answers} == {4}
            plain.final_logits_bias[0, EOS] = -9.0
        positions = plain.config.max_position_embeddings
        with pytest.raises(
            UserError, match=f"one of them for its forced first token: give at most {positions - 1}"
        ):
            ask(model, dataclasses.replace(GREEDY, max_new_tokens=positions))


def test_other_settings_of_a_hub_model_do_not_leak_in() -> None:
    model = make(RagToken)
    expected = ask(model, GREEDY)
    config = model.generator.model.generation_config
    config.num_beams, config.no_repeat_ngram_size, config.min_length = 4, 1, 4
    assert_same(ask(model, GREEDY), expected)
    assert config.num_beams == 4  # nor are they changed
    asked_for = ask(model, Decoding(max_new_tokens=5, min_new_tokens=5), no_repeat_ngram_size=1)
    assert all(len(set(answers[0].tokens)) == len(answers[0].tokens) for answers in asked_for)


# -- what must change nothing ----------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "decoding"), MODES)
def test_a_batch_equals_its_questions_one_by_one(kind: type[RagModel], decoding: Decoding) -> None:
    model = make(kind)
    assert_same(ask(model, decoding), [ask(model, decoding, [question])[0] for question in QUESTIONS])


@pytest.mark.parametrize(("kind", "decoding"), MODES)
def test_padding_changes_nothing(kind: type[RagModel], decoding: Decoding) -> None:
    model = make(kind)
    contexts = read(model)
    wider = dataclasses.replace(
        contexts,
        states=torch.cat([contexts.states, 10 * torch.randn_like(contexts.states)], dim=1),
        mask=torch.cat([contexts.mask, torch.zeros_like(contexts.mask)], dim=1),
    )
    assert_same(generate(model, wider, decoding), generate(model, contexts, decoding))


@pytest.mark.parametrize("backbone", [bart, t5])
@pytest.mark.parametrize(("kind", "decoding"), MODES)
def test_cache_on_equals_off(kind: type[RagModel], decoding: Decoding, backbone) -> None:
    model = make(kind, backbone())
    assert_same(ask(model, decoding, use_cache=True), ask(model, decoding, use_cache=False))


@pytest.mark.parametrize("kind", [RagToken, RagSequence])
def test_a_generator_may_have_no_cache(kind: type[RagModel], monkeypatch: pytest.MonkeyPatch) -> None:
    model = make(kind)
    expected = ask(model, BEAM)
    model.generator.model.config.use_cache = False
    forward = model.generator.model.get_decoder().forward

    def without_cache(*args, **kwargs):
        assert kwargs.get("past_key_values") is None and not kwargs["use_cache"]
        return forward(*args, **kwargs)

    monkeypatch.setattr(model.generator.model.get_decoder(), "forward", without_cache)
    assert_same(ask(model, BEAM), expected)


@pytest.mark.parametrize(("kind", "decoding"), MODES)
def test_the_order_of_passages_changes_nothing(kind: type[RagModel], decoding: Decoding) -> None:
    model = make(kind)
    before = ask(model, decoding)
    for question in QUESTIONS:
        for found in (model.retriever.rows, model.retriever.scores):
            found[question] = found[question][[2, 0, 1]]
    for one, other in zip(itertools.chain(*ask(model, decoding)), itertools.chain(*before), strict=True):
        assert one.tokens == other.tokens
        assert one.logprob == pytest.approx(other.logprob, rel=1e-5)
        torch.testing.assert_close(one.posterior, other.posterior[[2, 0, 1]], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("kind", "decoding"), MODES)
def test_passages_that_were_not_found_never_contribute(kind: type[RagModel], decoding: Decoding) -> None:
    model = make(kind)
    two = ask(model, decoding, QUESTIONS[:2], n_docs=2)
    model.retriever.rows[QUESTIONS[0]][2] = -1
    model.retriever.rows[QUESTIONS[2]][:3] = -1
    (first, _, third) = ask(model, decoding, QUESTIONS[:3], n_docs=3)
    for with_miss, without in zip(first, two[0], strict=True):
        assert with_miss.tokens == without.tokens
        assert with_miss.logprob == pytest.approx(without.logprob, rel=1e-5)
        assert with_miss.rows[2] == -1 and with_miss.doc_logprobs[2] == -torch.inf
        assert with_miss.posterior[2] == 0
        torch.testing.assert_close(with_miss.posterior[:2], without.posterior, rtol=1e-5, atol=1e-6)
    (empty,) = third
    assert (empty.text, empty.tokens, empty.logprob) == ("", (), -torch.inf)
    assert empty.posterior.tolist() == [0, 0, 0] and empty.rows.tolist() == [-1, -1, -1]
    for answers in ask(model, decoding, QUESTIONS[2:3]):  # a batch without any passage at all
        assert [answer.text for answer in answers] == [""]


def test_sampling_survives_a_question_without_passages() -> None:
    for kind in (RagToken, RagSequence):
        model = make(kind)
        model.retriever.rows[QUESTIONS[2]][:3] = -1
        answers = ask(model, Decoding(max_new_tokens=4, do_sample=True, num_return_sequences=2))
        assert answers[2][0].logprob == -torch.inf
        assert all(np.isfinite(answer.logprob) for answer in answers[0] + answers[1] + answers[3])


@pytest.mark.parametrize(("kind", "decoding"), MODES)
def test_what_is_not_a_number_is_refused_and_no_answer(kind: type[RagModel], decoding: Decoding) -> None:
    """NaN is not "no passage was found", and sorts before every number."""
    model = make(kind)
    contexts = read(model)
    broken = dataclasses.replace(contexts, doc_logprobs=contexts.doc_logprobs * torch.nan)
    with pytest.raises(UserError, match="is not a number: the weights hold NaN"):
        generate(model, broken, decoding)
    if not decoding.do_sample:  # transformers draws no token from NaN
        model.generator.model.final_logits_bias[:] = torch.nan
        with pytest.raises(UserError, match="is not a number: the weights hold NaN"):
            ask(model, decoding)


def test_an_empty_batch_has_no_answers() -> None:
    contexts = Contexts(torch.zeros(0, 4, 16), torch.zeros(0, 4, dtype=torch.bool), torch.zeros(0, 3), None)
    assert generate(make(RagToken), contexts, GREEDY) == []
    assert generate(make(RagSequence), contexts, GREEDY) == []


@pytest.mark.parametrize("n_docs", [[1, 2, 3, 5], [4, 1]])
@pytest.mark.parametrize(("kind", "decoding"), MODES)
def test_several_k_at_once_equal_each_by_itself(
    kind: type[RagModel], decoding: Decoding, n_docs: list[int]
) -> None:
    model = make(kind)
    model.retriever.rows[QUESTIONS[0]][2:] = -1  # two were found
    model.retriever.rows[QUESTIONS[2]][:] = -1  # none
    at_once = generate_for_each(model, read(model, n_docs=5), decoding, n_docs)
    assert list(at_once) == n_docs
    for docs, answers in at_once.items():
        assert_same(answers, ask(model, decoding, n_docs=docs))
    with pytest.raises(UserError, match="6 passages asked for, 5 were read"):
        generate_for_each(model, read(model, n_docs=5), decoding, [1, 6])


def test_a_passage_is_projected_once() -> None:
    """Cross-attention's keys: in the search, once for each passage, and never for scoring."""
    for kind in (RagToken, RagSequence):
        model, rows = make(kind), []
        for layer in model.generator.model.get_decoder().layers:
            layer.encoder_attn.k_proj.register_forward_hook(
                lambda _, args, __, rows=rows: rows.append(len(args[0]))
            )
        ask(model, GREEDY)
        assert rows == [len(QUESTIONS) * 3] * 2  # two layers


@pytest.mark.parametrize("kind", [RagToken, RagSequence])
def test_encoding_in_chunks_changes_nothing(kind: type[RagModel], monkeypatch: pytest.MonkeyPatch) -> None:
    model = make(kind)
    expected = ask(model, BEAM)
    monkeypatch.setattr(rag.generators.seq2seq, "ENCODED_AT_ONCE_ON_CPU", 16 * 40)
    assert_same(ask(model, BEAM), expected)


@pytest.mark.parametrize("kind", [RagToken, RagSequence])
def test_scoring_in_chunks_changes_nothing(kind: type[RagModel], monkeypatch: pytest.MonkeyPatch) -> None:
    model = make(kind)
    expected = ask(model, BEAM)
    monkeypatch.setattr(rag.decoding.rescoring, "STATES_AT_ONCE", 1)
    assert_same(ask(model, BEAM), expected)


@pytest.mark.parametrize(("kind", "decoding"), MODES)
def test_contexts_are_encoded_once(
    kind: type[RagModel], decoding: Decoding, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make(kind)
    contexts = read(model)

    def encode(*args: object, **kwargs: object) -> None:
        raise AssertionError("the encoder ran again")

    monkeypatch.setattr(model.generator.model.get_encoder(), "forward", encode)
    generate(model, contexts, decoding)


def test_fast_needs_no_further_forward_pass_and_thorough_normalises_each_prefix_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Over the vocabulary, which is what costs: once a step for each beam, and for Thorough once for each prefix that
    sequences share, under each passage whose own search did not go through it."""
    model = make(RagSequence)
    rows: list[int] = []
    normalise = PlainOutputLayer._in_blocks

    def counted(self: PlainOutputLayer, hidden: Tensor, into: Tensor | None = None) -> Tensor:
        rows.append(len(hidden))
        return normalise(self, hidden, into)

    monkeypatch.setattr(PlainOutputLayer, "_in_blocks", counted)
    fast = ask(model, dataclasses.replace(FAST, num_return_sequences=100))
    contexts = len(QUESTIONS) * 3
    searched = sum(rows)
    assert rows[0] == contexts  # beams are the same at first
    assert set(rows[1:]) == {contexts * FAST.num_beams} and len(rows) <= FAST.max_new_tokens

    def prefixes(answers: list[Answer]) -> set[tuple[int, ...]]:
        return {answer.tokens[:i] for answer in answers for i in range(len(answer.tokens))}

    new = all_of_them = 0
    for answers in fast:
        for doc in range(3):
            own = [answer for answer in answers if answer.doc_scores[doc] > -torch.inf]
            new += len(prefixes(answers) - prefixes(own))
            all_of_them += sum(len(answer.tokens) for answer in answers)
    rows.clear()
    ask(model, dataclasses.replace(BEAM, num_return_sequences=100))
    assert sum(rows) == searched + new
    assert 0 < new < all_of_them / 2  # sharing is worth something here


@pytest.mark.parametrize("sharpness", [1.0, 3.0])
@pytest.mark.parametrize("at_once", [None, 1])
@pytest.mark.parametrize("n_docs", [[5], [1, 2, 5]])
def test_dropping_hypotheses_that_cannot_win_changes_no_answer(
    sharpness: float, at_once: int | None, n_docs: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The best few are those of scoring all there are; the surer the model, the fewer are scored to their end."""
    model, rows = make(RagSequence), [0]
    with torch.no_grad():
        model.generator.model.get_output_embeddings().weight *= sharpness
    if at_once is not None:
        monkeypatch.setattr(rag.decoding.rescoring, "STATES_AT_ONCE", at_once)  # a context after the other
    normalise = PlainOutputLayer._in_blocks

    def counted(self: PlainOutputLayer, hidden: Tensor, into: Tensor | None = None) -> Tensor:
        rows[0] += len(hidden)
        return normalise(self, hidden, into)

    monkeypatch.setattr(PlainOutputLayer, "_in_blocks", counted)
    scored = {}
    for count in (1, 3, 100):
        rows[0] = 0
        decoding = dataclasses.replace(BEAM, num_beams=4, num_return_sequences=count)
        scored[count] = generate_for_each(model, read(model, n_docs=5), decoding, n_docs), rows[0]
    everything, all_rows = scored[100]
    for count in (1, 3):
        best, needed = scored[count]
        assert needed < all_rows
        for docs in n_docs:
            for few, many in zip(best[docs], everything[docs], strict=True):
                assert [each.tokens for each in few] == [each.tokens for each in many[:count]]
                for one, other in zip(few, many, strict=False):
                    assert one.logprob == pytest.approx(other.logprob, rel=1e-4, abs=1e-4)
                    torch.testing.assert_close(one.doc_scores, other.doc_scores, rtol=1e-4, atol=1e-4)
    assert scored[1][1] < scored[3][1]
    if sharpness > 1 and at_once is None and n_docs == [5]:
        rows[0] = 0
        ask(model, dataclasses.replace(FAST, num_beams=4))  # the search alone
        assert scored[1][1] - rows[0] < 0.5 * (all_rows - rows[0])


@pytest.mark.parametrize("backbone", [bart, t5])
@pytest.mark.parametrize(("kind", "decoding"), MODES)
def test_sharing_contexts_between_beams_changes_nothing(
    kind: type[RagModel], decoding: Decoding, backbone
) -> None:
    """Where attention cannot be exchanged, each row has its own copy, and sequences are scored one by one."""
    model = make(kind, backbone())
    shared = ask(model, decoding)
    model.generator.model.set_attn_implementation("eager")
    assert_same(ask(model, decoding), shared)


def test_cross_attention_s_cache_holds_each_context_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, rows = make(RagToken), []
    take = SharedCrossAttention.take_rows

    def counted(shared: SharedCrossAttention, some: Tensor) -> None:
        take(shared, some)
        rows.extend(len(layer.keys) for layer in shared.cache.cross_attention_cache.layers)

    monkeypatch.setattr(SharedCrossAttention, "take_rows", counted)
    ask(model, BEAM)
    assert set(rows) == {len(QUESTIONS) * 3}


# -- sampling, processors, streamers, lengths ------------------------------------------------------


@pytest.mark.parametrize("kind", [RagToken, RagSequence])
def test_sampling_repeats_with_its_seed(kind: type[RagModel]) -> None:
    model = make(kind)
    decoding = Decoding(max_new_tokens=5, do_sample=True, temperature=1.5, num_return_sequences=3)

    def sample(seed: int) -> list[list[Answer]]:
        torch.manual_seed(seed)
        return ask(model, decoding)

    assert_same(sample(1), sample(1))
    assert [pairs(answers) for answers in sample(1)] != [pairs(answers) for answers in sample(2)]
    for answers in sample(1):
        logprobs = [answer.logprob for answer in answers]
        assert logprobs == sorted(logprobs, reverse=True)


def test_token_samples_follow_the_marginal() -> None:
    """Of 3,000 first tokens each is drawn as often as p(y_1|x) says, within four standard deviations."""
    model, count = make(RagToken), 3000
    decoding = Decoding(max_new_tokens=1, do_sample=True, num_return_sequences=count)
    (answers,) = ask(model, decoding, QUESTIONS[:1])
    drawn = np.bincount([answer.tokens[0] for answer in answers], minlength=6) / count
    expected = marginal(model, QUESTIONS[0], [(token,) for token in range(6)]).exp().numpy()
    assert (np.abs(drawn - expected) < 4 * np.sqrt(expected * (1 - expected) / count) + 1e-3).all()


@pytest.mark.parametrize("kind", [RagToken, RagSequence])
@pytest.mark.parametrize("setting", [{"top_k": 1}, {"top_p": 1e-6}, {"temperature": 1e-4}])
def test_sampling_only_the_best_token_is_greedy(kind: type[RagModel], setting: dict) -> None:
    model = make(kind)
    assert_same(ask(model, dataclasses.replace(GREEDY, do_sample=True, **setting)), ask(model, GREEDY))


class Ban(LogitsProcessor):
    def __init__(self, token: int):
        self.token = token

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        scores = scores.clone()
        scores[:, self.token] = -torch.inf
        return scores


@pytest.mark.parametrize(("kind", "decoding"), MODES)
def test_a_logits_processor_is_honoured(kind: type[RagModel], decoding: Decoding) -> None:
    model = make(kind)
    usual = ask(model, decoding)[0][0].tokens[0]
    for question, answers in zip(
        QUESTIONS, ask(model, decoding, logits_processor=LogitsProcessorList([Ban(usual)])), strict=True
    ):
        for answer in answers:
            assert usual not in answer.tokens
            if decoding.thorough:
                expected = marginal(model, question, [answer.tokens]).item()
                assert answer.logprob == pytest.approx(expected, rel=1e-5)


class Stop(StoppingCriteria):
    """Stops a row at its second token."""

    def __call__(
        self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **kwargs: object
    ) -> torch.Tensor:
        return (input_ids[:, -1] == A) | torch.tensor(input_ids.shape[1] == 3)


@pytest.mark.parametrize(("kind", "decoding"), MODES)
def test_a_stopping_criterion_ends_an_answer(kind: type[RagModel], decoding: Decoding) -> None:
    model = make(kind)
    criteria = StoppingCriteriaList([Stop()])
    for question, answers in zip(QUESTIONS, ask(model, decoding, stopping_criteria=criteria), strict=True):
        for answer in answers:
            assert len(answer.tokens) <= 2 and PAD not in answer.tokens
            if decoding.thorough:
                expected = marginal(model, question, [answer.tokens]).item()
                assert answer.logprob == pytest.approx(expected, rel=1e-5)


class Collect(BaseStreamer):
    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.ended = False

    def put(self, value: Tensor) -> None:
        self.tokens += value.flatten().tolist()

    def end(self) -> None:
        self.ended = True


@pytest.mark.parametrize("kind", [RagToken, ClosedBook])
def test_a_streamer_gets_the_tokens(kind: type[RagModel]) -> None:
    model, streamer = make(kind), Collect()
    ((answer,),) = ask(model, GREEDY, QUESTIONS[:1], streamer=streamer)
    assert streamer.ended and streamer.tokens == [EOS, *answer.tokens]  # the start token first


@pytest.mark.parametrize(("kind", "decoding"), MODES)
def test_max_new_tokens_and_min_new_tokens_are_honoured(kind: type[RagModel], decoding: Decoding) -> None:
    for length in (1, 4, 9):
        exact = dataclasses.replace(decoding, max_new_tokens=length, min_new_tokens=length)
        for answers in ask(make(kind), exact):
            for answer in answers:
                assert len(answer.tokens) == length
                assert answer.token_posterior is None or answer.token_posterior.shape == (3, length)
    short = dataclasses.replace(decoding, max_new_tokens=2)
    assert all(len(answer.tokens) <= 2 for answers in ask(make(kind), short) for answer in answers)


def test_num_return_sequences() -> None:
    beams = Decoding(max_new_tokens=4, num_beams=4, num_return_sequences=4)
    for answers in ask(make(RagToken), beams):
        assert len({answer.tokens for answer in answers}) == 4
    for decoding in (beams, dataclasses.replace(beams, thorough=False)):
        for answers in ask(make(RagSequence), decoding):
            assert len({answer.tokens for answer in answers}) == 4
            assert answers == sorted(answers, key=lambda answer: -answer.logprob)
    # Greedy search of three passages finds at most three answers, and no answer twice.
    for answers in ask(make(RagSequence), dataclasses.replace(GREEDY, num_return_sequences=5)):
        assert 1 <= len({answer.tokens for answer in answers}) == len(answers) <= 3
    sampled_beams = Decoding(max_new_tokens=4, do_sample=True, num_beams=2, num_return_sequences=6)
    assert all(2 <= len(answers) <= 6 for answers in ask(make(RagSequence), sampled_beams))
    samples = Decoding(max_new_tokens=4, do_sample=True, num_return_sequences=5)
    assert [len(answers) for answers in ask(make(RagToken), samples)] == [5, 5, 5, 5]


def test_the_number_of_passages_asked_for_holds_on_the_whole_path() -> None:
    """The model's own n_docs is 3; five are asked for and five count."""
    for kind in (RagToken, RagSequence):
        model = make(kind)
        for question, (answer,) in zip(QUESTIONS, ask(model, GREEDY, n_docs=5), strict=True):
            assert answer.doc_scores.shape == answer.posterior.shape == (5,)
            expected = marginal(model, question, [answer.tokens], n_docs=5).item()
            assert answer.logprob == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("kind", "decoding"), MODES)
def test_half_precision_gives_scores_in_float32(kind: type[RagModel], decoding: Decoding) -> None:
    model = make(kind, bart().bfloat16())
    for answer in itertools.chain(*ask(model, decoding)):
        assert np.isfinite(answer.logprob)
        assert {answer.doc_scores.dtype, answer.posterior.dtype, answer.doc_logprobs.dtype} == {torch.float32}
        assert answer.posterior.sum().item() == pytest.approx(1, rel=1e-5)


def test_one_token_answers_make_both_models_equal() -> None:
    one = Decoding(max_new_tokens=1, num_beams=6, num_return_sequences=6)
    token, sequence = make(RagToken), make(RagSequence)
    sequence.generator = token.generator
    assert_same(ask(sequence, one), ask(token, one))


# -- mistakes --------------------------------------------------------------------------------------


def test_contradictions_are_refused_in_one_sentence() -> None:
    with pytest.raises(UserError, match="max_new_tokens is 0: give 1 or more"):
        Decoding(max_new_tokens=0)
    with pytest.raises(UserError, match="min_new_tokens is 9"):
        Decoding(max_new_tokens=5, min_new_tokens=9)
    with pytest.raises(UserError, match="3 answers from 1 beams"):
        ask(make(RagToken), Decoding(num_return_sequences=3))
    with pytest.raises(UserError, match="3 answers from 2 beams"):
        ask(make(RagToken), Decoding(num_return_sequences=3, num_beams=2, do_sample=True))
    for wrong in ({"temperature": 0.0}, {"top_p": 0.0}, {"top_p": 1.5}, {"top_k": -1}):
        with pytest.raises(UserError, match="give a temperature above 0"):
            Decoding(do_sample=True, **wrong)
    with pytest.raises(UserError, match="num_beams given beside"):
        ask(make(RagToken), GREEDY, num_beams=4)
    with pytest.raises(UserError, match="leave the streamer out"):
        ask(make(RagSequence), GREEDY, streamer=Collect())
    with pytest.raises(ValueError, match="no_such_setting"):
        ask(make(RagToken), GREEDY, no_such_setting=4)


def test_marginal_of_one_passage_without_prior_is_the_passage_itself() -> None:
    """The case RAG-Sequence's search rests on: K = 1 with log p(z|x) = 0."""
    logprobs = torch.randn(2, 1, 6).log_softmax(-1)
    torch.testing.assert_close(marginalize.next_token_logprobs(torch.zeros(2, 1), logprobs), logprobs[:, 0])

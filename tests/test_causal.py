"""Causal language models as generators, against the plain model's own scores in one pass over prompt and answer.

The tiny world of test_decoding.py, whose vocabulary has six tokens, stands behind the marginals: every answer is listed
and scored by transformers' model for one passage at a time, without padding, keys that were computed before, or a line
of the code under test.
"""

from collections.abc import Sequence

import numpy as np
import pytest
import test_decoding as tiny
import torch
from torch import Tensor, nn
from torch.testing import assert_close
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, GenerationConfig
from transformers.generation.streamers import BaseStreamer

import rag.generators.causal
import rag.generators.output_layer
from rag.decoding.generation import generate, generate_for_each
from rag.decoding.settings import Decoding
from rag.errors import UserError
from rag.generators.causal import CausalGenerator
from rag.generators.causal_loading import KINDS, check_reads
from rag.model import ClosedBook, RagModel, RagSequence, RagToken

COMMON = {
    "vocab_size": 6,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "max_position_embeddings": 64,
    "initializer_range": 0.5,
    "bos_token_id": tiny.BOS,
    "pad_token_id": tiny.PAD,
    "eos_token_id": tiny.EOS,
}
SHARED_HEADS = {"num_key_value_heads": 2, "head_dim": 8}
MORE = {
    "gemma3_text": {
        **SHARED_HEADS,
        "sliding_window": 4,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "gptj": {"rotary_dim": 4},
    "granite": SHARED_HEADS,
    "llama": SHARED_HEADS,
    "mistral": {**SHARED_HEADS, "sliding_window": 4},
    "mixtral": {**SHARED_HEADS, "num_local_experts": 4},
    "opt": {"ffn_dim": 24, "word_embed_proj_dim": 16},
    "phi3": {"num_key_value_heads": 2, "sliding_window": 4},
    "qwen2": {"num_key_value_heads": 2, "tie_word_embeddings": True},
    "qwen3": SHARED_HEADS,
    "smollm3": {
        "num_key_value_heads": 2,
        "use_sliding_window": True,
        "sliding_window": 4,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "starcoder2": {"num_key_value_heads": 2, "sliding_window": 4},
}
FOUR = (
    "llama",
    "qwen2",
    "gpt2",
    "mistral",
)  # rotary; tied and rotary; learned positions; a window of four tokens
MODELS = [RagSequence, RagToken]


def plain(kind: str, **settings: object) -> nn.Module:
    """A random model of a kind, whose predictions differ."""
    known = COMMON | MORE.get(kind, {}) | settings
    config = CONFIG_MAPPING[kind](**known)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name or name.endswith("bias"):
                weight.add_(torch.randn_like(weight) * 0.3)
    return model


def generator(kind: str = "llama", **settings: object) -> CausalGenerator:
    given = {
        "max_context_length": 24,
        "max_target_length": 8,
        "template": "{passage} c {question} b",
    } | settings
    return CausalGenerator(plain(kind), tiny.tokenizer(), **given)


def make(model: type[RagModel], kind: str = "llama", **settings: object) -> RagModel:
    reader = generator(kind, **settings)
    made = ClosedBook(reader) if model is ClosedBook else model(tiny.TinyRetriever(), reader, n_docs=3)
    return made.eval()


def prompt(model: RagModel, question: str, row: int) -> list[int]:
    """<s> passage c question b, by hand."""
    own = model.generator.tokenizer(question, add_special_tokens=False)["input_ids"]
    return [tiny.BOS, *tiny.PASSAGES[row], tiny.C, *own, tiny.B]


@torch.no_grad()
def token_logprobs(
    model: RagModel, question: str, answers: Sequence[tuple[int, ...]], n_docs: int = 3
) -> Tensor:
    """log p_θ(y_i|x,z,y_<i) by the plain model, one passage and one answer at a time; zero after an answer's end."""
    longest = max(map(len, answers))
    scores = torch.zeros(len(answers), n_docs, longest)
    for doc, row in enumerate(model.retriever.rows[question][:n_docs]):
        start = prompt(model, question, row)
        for length in {len(answer) for answer in answers}:
            some = [number for number, answer in enumerate(answers) if len(answer) == length]
            rows = torch.tensor([[*start, *answers[n]] for n in some])
            logits = model.generator.model(
                input_ids=rows, attention_mask=torch.ones_like(rows), use_cache=False
            ).logits[:, len(start) - 1 : -1]
            own = logits.log_softmax(-1).gather(-1, rows[:, len(start) :].unsqueeze(-1)).squeeze(-1)
            scores[some, doc, :length] = own
    return scores


def marginal(model: RagModel, question: str, answers: Sequence[tuple[int, ...]], n_docs: int = 3) -> Tensor:
    """log p(y|x) by the formula of section 2.1."""
    tokens = token_logprobs(model, question, answers, n_docs)
    docs = tiny.prior(model, question, n_docs)
    if isinstance(model, RagSequence):
        return (docs + tokens.sum(dim=2)).logsumexp(dim=1)
    return (docs.unsqueeze(1) + tokens).logsumexp(dim=1).sum(dim=1)


# -- the model -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_that_is_named_is_read(kind):
    check_reads(generator(kind))


@pytest.mark.parametrize("kind", FOUR)
def test_one_passage_is_the_plain_model_s_log_likelihood(kind):
    for model in (make(RagSequence, kind), make(RagToken, kind)):
        targets = ["a", "b a c", "c c a b", ""]
        for grad in (True, False):
            with torch.set_grad_enabled(grad):
                found = model(model.prepare(tiny.QUESTIONS, targets), n_docs=1).logprob
            for question, target, logprob in zip(tiny.QUESTIONS, targets, found, strict=True):
                answer = (*(tiny.A + "abc".index(word) for word in target.split()), tiny.EOS)
                expected = token_logprobs(model, question, [answer], 1).sum()
                assert_close(logprob.detach(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", FOUR)
@pytest.mark.parametrize("model", MODELS)
def test_marginals_sum_to_one_and_are_the_formula_s(kind, model):
    made = make(model, kind)
    assert marginal(made, "b a c", tiny.every_answer(2)).logsumexp(0).item() == pytest.approx(0, abs=1e-5)
    targets = ["a", "b a c", "c c a b", "a b"]
    likelihood = made(made.prepare(tiny.QUESTIONS, targets))
    for question, target, logprob in zip(tiny.QUESTIONS, targets, likelihood.logprob.detach(), strict=True):
        answer = (*(tiny.A + "abc".index(word) for word in target.split()), tiny.EOS)
        assert_close(logprob, marginal(made, question, [answer])[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", FOUR)
def test_neither_the_side_of_padding_nor_the_batch_changes_anything(kind):
    made = make(RagSequence, kind).generator
    rows = [[0, 3, 4, 5], [0, 5, 3, 3, 4, 5, 4, 3], [0, 4]]
    labels = torch.tensor([[3, 4, 2], [5, 2, 1], [4, 4, 4]])
    right = torch.tensor([[*row, *[1] * (8 - len(row))] for row in rows])
    left = torch.tensor([[*[1] * (8 - len(row)), *row] for row in rows])
    both = torch.tensor([[*[1] * (2), *row, *[1] * (8 - len(row))] for row in rows])
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            found = []
            for ids in (right, left, both):
                mask = ids != 1
                states = made.encode(ids, mask)
                found.append(made.token_logprobs(states, mask, labels)[0].detach())
            for row, label, scores in zip(rows, labels, found[0], strict=True):
                ids = torch.tensor([row])
                states = made.encode(ids, ids >= 0)
                alone = made.token_logprobs(states, ids >= 0, label.unsqueeze(0))[0].detach()[0]
                assert_close(alone, scores, rtol=1e-4, atol=1e-5)
        assert_close(found[0], found[1], rtol=1e-4, atol=1e-5)
        assert_close(found[0], found[2], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", FOUR)
@pytest.mark.parametrize("model", MODELS)
def test_the_gradient_is_the_plain_model_s(kind, model, monkeypatch):
    made = make(model, kind)
    targets = ["a", "b a c", "c c a b", "a b"]
    answers = [(*(tiny.A + "abc".index(word) for word in target.split()), tiny.EOS) for target in targets]
    loss = 0
    for question, answer in zip(tiny.QUESTIONS, answers, strict=True):
        scores = []
        for row in made.retriever.rows[question][:3]:
            rows = torch.tensor([[*prompt(made, question, row), *answer]])
            logits = made.generator.model(input_ids=rows, attention_mask=torch.ones_like(rows)).logits
            own = logits[0, -len(answer) - 1 : -1].log_softmax(-1)
            scores.append(own.gather(-1, torch.tensor(answer).unsqueeze(-1)).squeeze(-1))
        docs, tokens = tiny.prior(made, question), torch.stack(scores)
        if model is RagSequence:
            loss = loss - (docs + tokens.sum(dim=1)).logsumexp(dim=0)
        else:
            loss = loss - (docs.unsqueeze(1) + tokens).logsumexp(dim=0).sum()
    weights = dict(made.generator.model.named_parameters())
    expected = dict(zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True))
    # As it is; in pieces that are computed again in the backward pass; with few logits at once.
    for may_keep, at_once in ((1 << 26, 1 << 24), (1, 1 << 24), (3_000, 12)):
        monkeypatch.setattr(rag.generators.seq2seq, "KEPT_ON_CPU", may_keep)
        monkeypatch.setattr(rag.generators.output_layer, "LOGITS_AT_ONCE", at_once)
        made.zero_grad()
        (-made(made.prepare(tiny.QUESTIONS, targets)).logprob.sum()).backward()
        for name, weight in weights.items():
            assert_close(weight.grad, expected[name], rtol=1e-3, atol=1e-4, msg=name)


def test_layers_can_be_recomputed():
    made = make(RagSequence)
    grads = []
    for recompute in (False, True):
        if recompute:
            made.generator.recompute_layers()
        made.train()
        made.zero_grad()
        made(made.prepare(tiny.QUESTIONS, ["a", "b", "c", "a b"])).logprob.sum().backward()
        grads.append([weight.grad.clone() for weight in made.generator.parameters()])
    assert made.generator.model.model.gradient_checkpointing
    for one, other in zip(*grads, strict=True):
        assert_close(one, other)


def test_prompts_have_no_logits(monkeypatch):
    """Scores over the vocabulary are made of the answer's states alone."""
    seen = []
    made = make(RagSequence)
    made.generator.model.lm_head.register_forward_hook(lambda *args: seen.append(args[2].shape))
    batch = made.prepare(tiny.QUESTIONS, ["a", "b", "c", "a b"])
    made(batch).logprob.sum().backward()
    rows = sum(int(np.prod(shape[:-1])) for shape in seen)
    assert 0 < rows <= 2 * 4 * 3 * batch.labels.shape[1]  # once more in the backward pass


# -- decoding --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FOUR)
@pytest.mark.parametrize("model", MODELS)
def test_beams_that_hold_everything_equal_exhaustive_scoring(kind, model):
    made = make(model, kind)
    answers = tiny.every_answer(3)
    decoding = Decoding(
        max_new_tokens=3,
        num_beams=tiny.ALL,
        num_return_sequences=12,
        length_penalty=0.0 if model is RagToken else 1.0,
    )
    for question in tiny.QUESTIONS[:2]:
        expected = tiny.by_score(answers, marginal(made, question, answers), 12)
        found = tiny.ask(made, decoding, [question])[0]
        assert [tokens for tokens, _ in tiny.pairs(found)] == [tokens for tokens, _ in expected]
        assert [score for _, score in tiny.pairs(found)] == pytest.approx([s for _, s in expected], rel=1e-4)


@pytest.mark.parametrize("kind", FOUR)
@pytest.mark.parametrize(("model", "decoding"), tiny.MODES)
def test_answers_are_worth_what_the_plain_model_says(kind, model, decoding):
    made = make(model, kind)
    for question, answers in zip(tiny.QUESTIONS, tiny.ask(made, decoding), strict=True):
        for answer in answers:
            scores = token_logprobs(made, question, [answer.tokens])[0]
            known = answer.doc_scores > -torch.inf
            assert known.any() and (known.all() or not decoding.thorough)
            assert_close(answer.doc_scores[known], scores.sum(dim=1)[known], rtol=1e-4, atol=1e-4)
            if decoding.thorough:
                assert answer.logprob == pytest.approx(
                    marginal(made, question, [answer.tokens]).item(), rel=1e-4
                )
            assert_close(answer.posterior, (answer.doc_logprobs + answer.doc_scores).softmax(0))
            if answer.token_posterior is not None:
                joint = tiny.prior(made, question).unsqueeze(1) + scores
                assert_close(answer.token_posterior, joint.softmax(0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", FOUR)
@pytest.mark.parametrize(("model", "decoding"), tiny.MODES)
def test_a_batch_is_its_questions_one_by_one(kind, model, decoding):
    made = make(model, kind)
    alone = [tiny.ask(made, decoding, [question])[0] for question in tiny.QUESTIONS]
    tiny.assert_same(tiny.ask(made, decoding), alone, rtol=1e-4)


@pytest.mark.parametrize("kind", FOUR)
@pytest.mark.parametrize(("model", "decoding"), tiny.MODES)
def test_shared_prompts_change_nothing(kind, model, decoding):
    """Without a cache each beam reads a copy of its prompt's keys, and every hypothesis is scored by itself."""
    made = make(model, kind)
    tiny.assert_same(tiny.ask(made, decoding), tiny.ask(made, decoding, use_cache=False), rtol=1e-4)


@pytest.mark.parametrize("kind", FOUR)
@pytest.mark.parametrize("num_beams", [1, 3])
def test_one_passage_answers_as_transformers_generate(kind, num_beams):
    made = make(RagSequence, kind)
    decoding = Decoding(max_new_tokens=5, num_beams=num_beams, num_return_sequences=num_beams)
    for question in tiny.QUESTIONS:
        start = prompt(made, question, made.retriever.rows[question][0])
        rows = torch.tensor([start])
        theirs = made.generator.model.generate(
            rows,
            attention_mask=torch.ones_like(rows),
            generation_config=GenerationConfig(
                max_new_tokens=5,
                num_beams=num_beams,
                num_return_sequences=num_beams,
                eos_token_id=tiny.EOS,
                pad_token_id=tiny.PAD,
            ),
        )[:, len(start) :]
        expected = set()
        for row in theirs.tolist():
            expected.add(tuple(row[: row.index(tiny.EOS) + 1] if tiny.EOS in row else row))
        found = tiny.ask(made, decoding, [question], n_docs=1)[0]
        assert {answer.tokens for answer in found} == expected


def test_several_k_are_each_k_by_itself():
    for model in MODELS:
        made = make(model)
        contexts = tiny.read(made)
        for decoding in (tiny.GREEDY, tiny.BEAM):
            found = generate_for_each(made, contexts, decoding, [1, 2, 3])
            for docs, answers in found.items():
                tiny.assert_same(answers, tiny.ask(made, decoding, n_docs=docs), rtol=1e-4)


def test_contexts_that_were_read_for_training_can_be_decoded():
    made = make(RagSequence)
    with torch.enable_grad():
        contexts = made.read(made.prepare(tiny.QUESTIONS), 3)
    assert not contexts.states.is_floating_point()
    tiny.assert_same(generate(made, contexts, tiny.BEAM), tiny.ask(made, tiny.BEAM))


def test_samples_follow_the_marginal():
    made = make(RagToken)
    question, count = "b a c", 4_000
    decoding = Decoding(max_new_tokens=1, do_sample=True, num_return_sequences=count)
    answers = tiny.ask(made, decoding, [question])[0]
    expected = marginal(made, question, [(token,) for token in range(6)]).exp()
    drawn = torch.bincount(torch.tensor([answer.tokens[0] for answer in answers]), minlength=6) / count
    assert (drawn - expected).abs().max() < 4 * (0.25 / count) ** 0.5


class Heard(BaseStreamer):
    def __init__(self) -> None:
        self.tokens: list[int] = []

    def put(self, value: Tensor) -> None:
        self.tokens += value.flatten().tolist()

    def end(self) -> None:
        pass


def test_tokens_are_streamed_as_they_come():
    made, heard = make(RagToken), Heard()
    (answer,) = tiny.ask(made, tiny.GREEDY, ["b a c"], streamer=heard)[0]
    assert heard.tokens == [made.generator.start_token, *answer.tokens]


def test_a_prompt_is_read_once(monkeypatch):
    """Whatever is decoded: prompts pass through the model once, and afterwards a token for each row at most."""
    made = make(RagSequence)
    read = []
    made.generator.body.register_forward_pre_hook(
        lambda module, args, kwargs: read.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    contexts = tiny.read(made)
    prompts = sum(rows * length for rows, length in read)
    assert prompts >= int(contexts.mask.sum()) and len(read) <= len(contexts.states)
    read.clear()
    generate(made, contexts, tiny.BEAM)
    assert all(rows == len(contexts.states) for rows, _ in read)
    assert max(tokens for _, tokens in read) <= 9  # hypotheses of a question, each one token


def test_closed_book_reads_the_question_alone():
    made = make(ClosedBook, template="{passage} c {question} b")
    assert made.generator.assemble(made.prepare(["b a"]).generator_questions)[0].tolist() == [
        [tiny.BOS, tiny.C, tiny.B, tiny.A]
    ]
    start = [tiny.BOS, tiny.C, tiny.B, tiny.A, tiny.B]
    likelihood = made(made.prepare(["b a"], ["c a"])).logprob[0].detach()
    rows = torch.tensor([[*start, tiny.C, tiny.A, tiny.EOS]])
    logits = made.generator.model(input_ids=rows).logits[0, len(start) - 1 : -1].log_softmax(-1)
    assert_close(likelihood, logits.gather(-1, rows[0, len(start) :].unsqueeze(-1)).sum().detach())


def test_an_encoder_that_fills_masks_is_of_a_kind_that_is_not_read(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(
        UserError, match="holds a model of type bert, which is not read as a causal language model"
    ):
        CausalGenerator.from_pretrained(tmp_path)

"""Section 2.3: scores over the vocabulary by any module: values, gradients, decoding, and what is not read."""

import pytest
import torch
from conftest import QUESTIONS, tiny_bart, word_tokenizer
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.testing import assert_close
from transformers import GenerationConfig

import rag.generators.output_layer
from rag.decoding.generation import generate
from rag.decoding.settings import Decoding
from rag.errors import UserError
from rag.generators.output_layer import OutputLayer, PlainOutputLayer, check_output_layer, output_layer
from rag.generators.seq2seq import Generator
from rag.model import ClosedBook

TARGETS = ["the Tiber", "Paris, the capital", ""]


class LowRank(nn.Module):
    """A frozen linear layer and a trained product of two thin ones, as adapters add it."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.linear = linear.requires_grad_(False)
        self.down = nn.Linear(linear.in_features, 2, bias=False)
        self.up = nn.Linear(2, linear.out_features, bias=False)

    @property
    def weight(self) -> Tensor:  # as an adapter's: that of the layer beneath
        return self.linear.weight

    def forward(self, hidden: Tensor) -> Tensor:
        return self.linear(hidden) + self.up(self.down(hidden))


class Mixture(nn.Module):
    """Two softmaxes mixed: log-probabilities that no matrix gives."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.first, self.gate = linear, nn.Linear(linear.in_features, 1)
        self.second = nn.Linear(linear.in_features, linear.out_features)

    def forward(self, hidden: Tensor) -> Tensor:
        gate = self.gate(hidden)
        one = nn.functional.logsigmoid(gate) + self.first(hidden).log_softmax(-1)
        return torch.logaddexp(one, nn.functional.logsigmoid(-gate) + self.second(hidden).log_softmax(-1))


class Halved(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight / 2


class Hook:
    def __call__(self, module: nn.Module, args: tuple, logits: Tensor) -> Tensor:
        return 1.5 * logits


def altered(kind: str) -> Generator:
    tokenizer = word_tokenizer()
    model = tiny_bart(len(tokenizer), tie_word_embeddings=False)
    head = model.get_output_embeddings()
    if kind == "biased":
        biased = nn.Linear(head.in_features, head.out_features)
        model.set_output_embeddings(biased)
    if kind == "low rank":
        model.set_output_embeddings(LowRank(head))
    if kind == "mixture":
        model.set_output_embeddings(Mixture(head))
    if kind == "parametrised":
        parametrize.register_parametrization(head, "weight", Halved())
    if kind == "hook":
        head.register_forward_hook(Hook())
    return Generator(model, tokenizer)


KINDS = {
    "plain": True,
    "biased": True,
    "low rank": False,
    "mixture": False,
    "parametrised": False,
    "hook": False,
}


@pytest.mark.parametrize(("kind", "fast"), KINDS.items())
def test_only_an_unaltered_linear_layer_takes_the_fast_path(kind, fast):
    assert isinstance(altered(kind).output_layer, PlainOutputLayer) == fast


@pytest.mark.parametrize("at_once", [1, 150, 10**9])
@pytest.mark.parametrize("by_words", [False, True])
@pytest.mark.parametrize("want_mean", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_gradients_are_those_of_plain_autograd(kind, want_mean, by_words, at_once, monkeypatch):
    """By words, as on a CPU, and by rows, as on a GPU."""
    generator = altered(kind)
    generator.model.double()
    questions, (labels, real) = (
        generator.tokenize_questions(QUESTIONS, separator=False),
        generator.tokenize_targets(TARGETS),
    )
    ids, mask = generator.assemble(questions)
    start = labels.new_full((len(labels), 1), generator.start_token)
    logits = generator.model(
        input_ids=ids,
        attention_mask=mask.long(),
        decoder_input_ids=torch.cat([start, labels[:, :-1]], dim=1),
    ).logits
    expected = logits.log_softmax(dim=-1)
    targets = expected.gather(2, labels.unsqueeze(2)).squeeze(2)
    weights = torch.randn(labels.shape).double() * real
    mean_weights = torch.randn(labels.shape).double() * real * want_mean
    ((targets * weights).sum() + (expected.mean(dim=2) * mean_weights).sum()).backward()
    trained = {name: w for name, w in generator.model.named_parameters() if w.requires_grad}
    wanted = {name: None if w.grad is None else w.grad.clone() for name, w in trained.items()}
    of_head = [name for name in trained if "lm_head" in name]
    assert of_head and all(wanted[name] is not None and wanted[name].norm() > 0 for name in of_head)
    generator.model.zero_grad()

    settings = {"LOGITS_AT_ONCE": at_once, "LOGITS_KEPT": at_once, "WORDS_AT_ONCE": 7, "SCORED_AT_ONCE": 1}
    for name, value in (settings | {"BY_WORDS": ("cpu",) if by_words else ()}).items():
        monkeypatch.setattr(rag.generators.output_layer, name, value)
    logprobs, means = generator.token_logprobs(generator.encode(ids, mask), mask, labels, want_mean)
    assert_close(logprobs[real], targets[real])
    loss = (logprobs * weights).sum()
    if want_mean:
        assert means is not None
        assert_close(means[real], expected.mean(dim=2)[real])
        loss = loss + (means * mean_weights).sum()
    loss.backward()
    for name, weight in trained.items():
        assert_close(weight.grad, wanted[name], msg=name)


@pytest.mark.parametrize("kind", KINDS)
def test_what_decoding_asks_for_is_the_same_numbers(kind, monkeypatch):
    monkeypatch.setattr(rag.generators.output_layer, "LOGITS_AT_ONCE", 150)
    layer = altered(kind).output_layer
    assert isinstance(layer, OutputLayer)
    hidden = torch.randn(2, 3, 16)
    logits = layer.logits(hidden)
    tokens = torch.tensor([[0, 1, 5], [7, 2, 3]])
    assert logits.shape == (2, 3, layer.vocabulary)
    assert_close(layer.token_logits(hidden, tokens), logits.gather(2, tokens.unsqueeze(2)).squeeze(2))
    flat = hidden.flatten(0, 1)
    assert_close(layer.log_normalisers(flat), logits.logsumexp(-1).flatten())
    written, normalisers = layer.normalised(flat)
    assert_close(written, logits.flatten(0, 1))
    assert_close(normalisers, logits.logsumexp(-1).flatten())
    assert layer.log_normalisers(flat[:0]).shape == (0,)


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("kind", ["low rank", "mixture", "hook"])
@torch.no_grad()
def test_answers_are_those_of_the_models_own_generate(kind, beams):
    model = ClosedBook(altered(kind)).eval()
    generator = model.generator
    batch = model.prepare(QUESTIONS)
    answers = generate(model, model.read(batch), Decoding(max_new_tokens=6, num_beams=beams))
    ids, mask = generator.assemble(batch.generator_questions)
    tokens = generator.model.generate(
        input_ids=ids,
        attention_mask=mask.long(),
        generation_config=GenerationConfig(
            max_new_tokens=6,
            num_beams=beams,
            decoder_start_token_id=generator.start_token,
            eos_token_id=generator.end_token,
            pad_token_id=generator.pad_token,
        ),
    )[:, 1:]
    for of_question, row in zip(answers, tokens.tolist(), strict=True):
        assert list(of_question[0].tokens) == row[: len(of_question[0].tokens)]
        assert set(row[len(of_question[0].tokens) :]) <= {generator.pad_token}
        labels = torch.tensor([of_question[0].tokens])
        one = model.prepare([QUESTIONS[answers.index(of_question)]])
        contexts = model.read(one)
        logprobs, _ = generator.token_logprobs(contexts.states, contexts.mask, labels)
        assert of_question[0].logprob == pytest.approx(float(logprobs.sum()), abs=1e-4)


def test_a_model_that_does_more_than_its_output_layer_is_refused():
    tokenizer = word_tokenizer()
    model = tiny_bart(len(tokenizer))
    check_output_layer(model, 2)
    forward = model.forward

    def capped(*args, **kwargs):
        output = forward(*args, **kwargs)
        output.logits = output.logits.tanh()
        return output

    model.forward = capped
    with pytest.raises(UserError, match="of type bart .* use another generator"):
        check_output_layer(model, 2)
    assert output_layer(model).vocabulary == len(tokenizer)

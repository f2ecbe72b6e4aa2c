"""What attention distillation reads: scores of cross-attention, noted while the decoder runs, against loops."""

import math
from functools import partial

import pytest
import torch
from conftest import QUESTIONS, bert_tokenizer, word_tokenizer
from test_module import batch, module
from test_warm_start import bert, shaken
from torch.testing import assert_close

from rag import objectives
from rag.classify import TokenClassifier
from rag.errors import UserError
from rag.generators import attention
from rag.generators.context import Ragged, token_rows
from rag.generators.lstm import new_model
from rag.generators.seq2seq import Generator
from rag.generators.warm_start import warm_started
from rag.model import RagSequence, RagToken

TEXTS = ["The Seine is a river .", "Paris is the capital of France and lies on the river Seine .", "Rome"]


@pytest.fixture
def warm() -> Generator:
    tokenizer = bert_tokenizer()
    model = warm_started(bert(len(tokenizer)), tokenizer.sep_token_id, tokenizer.cls_token_id)
    tokenizer.bos_token, tokenizer.eos_token = tokenizer.cls_token, tokenizer.sep_token
    return Generator(shaken(model), tokenizer, max_context_length=40, max_target_length=8).eval()


def cross_layers(generator: Generator) -> list[tuple[torch.nn.Module, torch.nn.Module, int]]:
    """The maps that make queries and keys of each layer's cross-attention, and its heads."""
    decoder = generator.model.get_decoder()
    if hasattr(decoder, "bert"):
        found = [layer.crossattention.self for layer in decoder.bert.encoder.layer]
        return [(one.query, one.key, one.num_attention_heads) for one in found]
    if hasattr(decoder, "block"):
        found = [block.layer[1].EncDecAttention for block in decoder.block]
        return [(one.q, one.k, one.n_heads) for one in found]
    return [(one.q_proj, one.k_proj, one.num_heads) for one in (e.encoder_attn for e in decoder.layers)]


def by_hand(generator: Generator, ids, mask, labels, label_mask) -> list[float]:
    """The mean of s · q·k, token by token, from what the maps give in transformers' own forward pass."""
    seen = {}
    hooks = [
        linear.register_forward_hook(lambda _, __, out, key=(n, kind): seen.__setitem__(key, out.detach()))
        for n, (query, key, _) in enumerate(cross_layers(generator))
        for kind, linear in (("q", query), ("k", key))
    ]
    inputs = torch.cat([torch.full_like(labels[:, :1], generator.start_token), labels[:, :-1]], dim=1)
    with torch.no_grad():
        generator.model(input_ids=ids, attention_mask=mask.long(), decoder_input_ids=inputs)
    for hook in hooks:
        hook.remove()
    scores = []
    for row in range(len(ids)):
        products = []
        for n, (_, _, heads) in enumerate(cross_layers(generator)):
            query, key = seen[n, "q"][row].double(), seen[n, "k"][row].double()
            width = query.shape[1] // heads
            scaling = 1.0 if generator.model.config.model_type == "t5" else 1 / math.sqrt(width)
            products += [
                scaling * (query[t, h * width : (h + 1) * width] @ key[i, h * width : (h + 1) * width]).item()
                for h in range(heads)
                for t in range(labels.shape[1])
                for i in range(ids.shape[1])
                if label_mask[row, t] and mask[row, i]
            ]
        scores.append(sum(products) / len(products))
    return scores


def contexts(generator: Generator):
    rows = Ragged.of(token_rows(generator.tokenizer, TEXTS))
    ids, mask = generator.assemble(generator.tokenize_questions(QUESTIONS[:1] * 3), rows)
    labels, label_mask = generator.tokenize_targets(["Paris", "the river Seine", "Rome France"])
    return ids, mask, labels, label_mask


@pytest.mark.parametrize("kind", ["bart", "t5", "warm"])
def test_scores_are_the_mean_of_queries_times_keys(kind, request, monkeypatch):
    generator = request.getfixturevalue(kind).eval()
    ids, mask, labels, label_mask = contexts(generator)
    with torch.no_grad():
        states = generator.encode(ids, mask)
    states = states.masked_fill(~mask.unsqueeze(2), 7.0)  # nobody looks at padding
    expected = by_hand(generator, ids, mask, labels, label_mask)
    assert max(expected) - min(expected) > 1e-3
    before = generator.token_logprobs(states, mask, labels)[0]
    found = generator.context_scores(states, mask, labels, label_mask)
    assert found.tolist() == pytest.approx(expected, abs=1e-4) and not found.requires_grad
    monkeypatch.setattr(attention, "KEYS_AT_ONCE", 1)  # row by row
    assert_close(generator.context_scores(states, mask, labels, label_mask), found)
    assert_close(generator.token_logprobs(states, mask, labels)[0], before)  # and all is as it was
    for more in range(2):  # words that are not asked for change nothing
        padded = torch.nn.functional.pad(labels, (0, more), value=generator.pad_token)
        unasked = torch.nn.functional.pad(label_mask, (0, more))
        assert_close(generator.context_scores(states, mask, padded, unasked), found)


# -- in training ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [RagSequence, RagToken])
@pytest.mark.parametrize("which", ["bart", "warm"])
@pytest.mark.parametrize("alone", [False, True])
def test_attention_teaches_the_retriever_and_the_answer_the_generator(kind, which, alone, request, retriever):
    generator = request.getfixturevalue(which).eval()
    model = kind(retriever, generator, n_docs=3)
    loss = partial(objectives.adist, temperature=0.05)
    own = module(model, retriever_loss=loss, retriever_weight=0.5, generator_loss=not alone)
    examples, inputs = batch(model)
    found = model(inputs)
    assert found.attention is None  # nobody asked for it
    tokens = model.retriever.index.tokens(generator.tokenizer, generator.title_separator, generator.prefix)
    scores = []
    for rows in found.retrieved.rows.T:  # a passage of each question at a time
        context = generator.assemble(inputs.generator_questions, Ragged(*tokens.gather(rows)))
        scores.append(by_hand(generator, *context, inputs.labels, inputs.label_mask))
    target = (torch.tensor(scores).T / 0.05).softmax(dim=1)
    of_retriever = (target * (target.log() - found.doc_logprobs)).sum(dim=1).mean()
    of_generator = -model.marginal(
        found.doc_logprobs.detach(), found.token_logprobs, inputs.label_mask
    ).mean()
    total = own.mean_loss((examples, inputs))
    assert_close(total, 0.5 * of_retriever + (0.0 if alone else of_generator), rtol=1e-3, atol=1e-4)
    total.backward()
    weights = list(retriever.question_encoder.parameters())
    gradients = torch.autograd.grad(0.5 * of_retriever, weights, allow_unused=True)
    for weight, gradient in zip(weights, gradients, strict=True):
        assert (weight.grad is None) == (gradient is None)
        if gradient is not None:
            assert_close(weight.grad, gradient, rtol=1e-2, atol=1e-5)
    # nothing of the attention's: the generator has the gradient of its own loss, or none
    weights = [weight for weight in generator.parameters() if weight.requires_grad]
    assert alone == (not weights)
    if weights:
        gradients = torch.autograd.grad(of_generator, weights, allow_unused=True)
        for weight, gradient in zip(weights, gradients, strict=True):
            assert_close(weight.grad, gradient, rtol=1e-3, atol=1e-6)


def test_a_bos_token_that_is_given_is_not_asked_for(bart, retriever):
    bart.model.generation_config.forced_bos_token_id = bart.tokenizer.bos_token_id
    model = RagToken(retriever, bart.eval(), n_docs=2).eval()
    inputs = model.prepare(QUESTIONS[:1], ["Paris"])
    found = model(inputs, want_attention=True)
    contexts = model.read(inputs)
    labels = torch.cat([torch.tensor([[bart.tokenizer.bos_token_id]]), inputs.labels], dim=1)
    asked = torch.tensor([[False] + [True] * inputs.labels.shape[1]])
    again = bart.context_scores(contexts.states, contexts.mask, labels.expand(2, -1), asked.expand(2, -1))
    assert_close(found.attention, again.unsqueeze(0))
    assert model(inputs).attention is None


# -- who cannot --------------------------------------------------------------------------------------


def test_generators_that_do_not_show_their_attention_are_refused(retriever):
    tokenizer = word_tokenizer()
    lstm = Generator(new_model(tokenizer, width=8, layers=1), tokenizer)
    with pytest.raises(UserError, match="a model of type rag_lstm does not show: take retriever_loss=pdist"):
        module(RagToken(retriever, lstm), retriever_loss=objectives.adist)
    module(RagToken(retriever, lstm), retriever_loss=objectives.pdist)


def test_a_generator_without_the_method_is_refused(retriever, bart):
    class Blind(torch.nn.Module):
        """What RagModule asks of a generator, without its attention."""

        trained_parts = bart.trained_parts

    with pytest.raises(UserError, match="attention, which a Blind does not show"):
        module(RagToken(retriever, Blind()), retriever_loss=objectives.adist)  # type: ignore[arg-type]


def test_classes_are_not_written(retriever, bart):
    classes = ["Paris", "Rome"]
    model = TokenClassifier(RagSequence(retriever, bart), classes)
    with pytest.raises(UserError, match="a class is not written"):
        module(model, retriever_loss=objectives.adist)
    with pytest.raises(UserError, match="a class is not written"):
        model(model.prepare(QUESTIONS[:1], ["Paris"]), want_attention=True)


def test_a_loss_names_what_it_takes():
    given = ("doc_logprobs", "token_logprobs", "token_mask")
    for loss in (objectives.emdr2, objectives.pdist, objectives.loop, partial(objectives.replug, gamma=1.0)):
        assert objectives.takes(loss) == given
    assert objectives.takes(partial(objectives.adist, temperature=0.1)) == ("doc_logprobs", "attention")
    with pytest.raises(UserError, match="takes scores is none: its parameters are among doc_logprobs, "):
        objectives.takes(lambda doc_logprobs, scores: None)
    with pytest.raises(UserError, match="takes nothing"):
        objectives.takes(lambda: None)

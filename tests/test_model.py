"""Section 2: the whole models against their formulas written out with Hugging Face's forward passes."""

import dataclasses
import logging
import math

import pytest
import torch
from conftest import ANSWERS, PASSAGES, QUESTIONS, tiny_bart, word_tokenizer
from torch.testing import assert_close

from rag import marginalize
from rag.errors import UserError
from rag.generators.seq2seq import Generator
from rag.model import ClosedBook, Contexts, RagSequence, RagToken
from rag.retrievers.dense import DenseRetriever

MODELS = [RagSequence, RagToken]


@pytest.fixture(params=["bart", "t5"])
def generator(request) -> Generator:
    return request.getfixturevalue(request.param)


def token_probabilities(generator: Generator, context: str, answer: str) -> list[float]:
    """p_θ(y_i|context,y_<i) by transformers' own forward pass over one unpadded string."""
    tokenizer, model = generator.tokenizer, generator.model
    labels = [*tokenizer(answer, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    inputs = torch.tensor([[model.config.decoder_start_token_id, *labels[:-1]]])
    logits = model(**tokenizer(context, return_tensors="pt"), decoder_input_ids=inputs).logits
    return logits.double().softmax(dim=-1)[0, range(len(labels)), labels].tolist()


def written_out(retriever: DenseRetriever, generator: Generator, question: str, answer: str, n_docs: int):
    """Priors and token probabilities of one question as Python floats."""
    retrieved = retriever(retriever.prepare([question]), n_docs)
    priors = retrieved.scores.double().softmax(dim=1)[0].tolist()
    contexts = [" / ".join(PASSAGES[row]) + " // " + question for row in retrieved.rows[0]]
    return priors, [token_probabilities(generator, context, answer) for context in contexts]


def by_formula(model_class, priors: list[float], tokens: list[list[float]]) -> float:
    if model_class is RagSequence:
        return math.log(sum(p * math.prod(of_doc) for p, of_doc in zip(priors, tokens, strict=True)))
    return sum(
        math.log(sum(p * of_doc[i] for p, of_doc in zip(priors, tokens, strict=True)))
        for i in range(len(tokens[0]))
    )


# -- values ----------------------------------------------------------------------------------


@pytest.mark.parametrize("model_class", MODELS)
@pytest.mark.parametrize("n_docs", [1, 4])
def test_the_likelihood_is_the_formula(model_class, n_docs, retriever, generator):
    model = model_class(retriever, generator, n_docs)
    likelihood = model(model.prepare(QUESTIONS, ANSWERS))
    expected = [
        by_formula(model_class, *written_out(retriever, generator, question, answer, n_docs))
        for question, answer in zip(QUESTIONS, ANSWERS, strict=True)
    ]
    assert_close(likelihood.logprob.double(), torch.tensor(expected).double(), rtol=1e-5, atol=1e-5)
    assert likelihood.smoothing is None
    assert likelihood.doc_logprobs.shape == (3, n_docs)


@pytest.mark.parametrize("model_class", MODELS)
def test_a_batch_equals_its_questions_one_by_one(model_class, retriever, generator):
    """Whatever the other questions and targets pad it with."""
    model = model_class(retriever, generator, 3)
    together = model(model.prepare(QUESTIONS, ANSWERS), want_smoothing=True)
    for row, (question, answer) in enumerate(zip(QUESTIONS, ANSWERS, strict=True)):
        alone = model(model.prepare([question], [answer]), want_smoothing=True)
        assert_close(alone.logprob[0], together.logprob[row], rtol=1e-5, atol=1e-5)
        assert_close(alone.smoothing[0], together.smoothing[row], rtol=1e-5, atol=1e-5)


def test_n_docs_can_be_chosen_at_each_call(retriever, bart):
    model = RagSequence(retriever, bart, n_docs=2)
    batch = model.prepare(QUESTIONS, ANSWERS)
    assert_close(model(batch, n_docs=5).logprob, RagSequence(retriever, bart, n_docs=5)(batch).logprob)
    assert model(batch).doc_logprobs.shape == (3, 2)


def test_reading_what_was_already_retrieved(retriever, bart):
    model = RagToken(retriever, bart, n_docs=3)
    batch = model.prepare(QUESTIONS)
    contexts = model.read(batch)
    assert isinstance(contexts, Contexts) and contexts.n_docs == 3 and contexts.retrieved is not None
    again = model.read_retrieved(batch, contexts.retrieved)
    assert_close(again.states, contexts.states, rtol=0, atol=0)
    assert torch.equal(again.mask, contexts.mask)


def test_smoothing_by_formula(retriever, bart):
    """Σ_i Σ_z p(z|x)·(−mean over V of log p_θ): with the passages' weights from the prior."""
    model = RagSequence(retriever, bart, 3)
    likelihood = model(model.prepare(QUESTIONS[:1], ANSWERS[:1]), want_smoothing=True)
    retrieved = retriever(retriever.prepare(QUESTIONS[:1]), 3)
    labels = [*bart.tokenizer(ANSWERS[0], add_special_tokens=False)["input_ids"], bart.end_token]
    expected = 0.0
    for prior, row in zip(retrieved.scores[0].softmax(dim=0).tolist(), retrieved.rows[0], strict=True):
        context = bart.tokenizer(" / ".join(PASSAGES[row]) + " // " + QUESTIONS[0], return_tensors="pt")
        inputs = torch.tensor([[bart.start_token, *labels[:-1]]])
        logprobs = bart.model(**context, decoder_input_ids=inputs).logits.log_softmax(dim=-1)
        expected -= prior * logprobs.mean(dim=-1).sum().item()
    assert_close(likelihood.smoothing, torch.tensor([expected]), rtol=1e-5, atol=1e-5)


# -- closed book -----------------------------------------------------------------------------


def test_closed_book_is_the_generator_on_the_bare_question(generator):
    model = ClosedBook(generator)
    likelihood = model(model.prepare(QUESTIONS, ANSWERS))
    expected = [
        sum(map(math.log, token_probabilities(generator, question, answer)))
        for question, answer in zip(QUESTIONS, ANSWERS, strict=True)
    ]
    assert_close(likelihood.logprob.double(), torch.tensor(expected).double(), rtol=1e-5, atol=1e-5)
    assert likelihood.retrieved is None and (likelihood.doc_logprobs == 0).all()


# -- gradients -------------------------------------------------------------------------------


@pytest.mark.parametrize("model_class", MODELS)
def test_the_question_encoder_learns_by_posterior_minus_prior(model_class, retriever, bart, passage_encoder):
    """Σ_z (p(z|x,y) − p(z|x))·d(z) is what reaches q(x); nothing reaches vectors or passage encoder."""
    model = model_class(retriever, bart, 4)
    queries = []
    retriever.question_encoder.register_forward_hook(lambda _, __, output: queries.append(output))
    batch = model.prepare(QUESTIONS, ANSWERS)
    likelihood = model(batch)
    queries[0].retain_grad()
    likelihood.logprob.sum().backward()
    prior = likelihood.doc_logprobs.detach()
    tokens = likelihood.token_logprobs.detach()
    if model_class is RagSequence:
        moved = marginalize.sequence_posterior(prior, tokens, batch.label_mask) - prior.exp()
    else:
        posterior = marginalize.token_posterior(prior, tokens) - prior.exp().unsqueeze(2)
        moved = (posterior * batch.label_mask.unsqueeze(1)).sum(dim=2)
    vectors = torch.from_numpy(retriever.index.vectors(likelihood.retrieved.rows))
    assert_close(queries[0].grad, torch.einsum("bk,bkd->bd", moved, vectors), rtol=1e-4, atol=1e-5)
    assert any(w.grad is not None and w.grad.any() for w in retriever.question_encoder.parameters())
    assert all(weight.grad is None for weight in passage_encoder.parameters())


@pytest.mark.parametrize("model_class", MODELS)
def test_smoothing_reaches_the_generator_alone(model_class, retriever, bart):
    model = model_class(retriever, bart, 4)
    model(model.prepare(QUESTIONS, ANSWERS), want_smoothing=True).smoothing.sum().backward()
    assert all(weight.grad is None for weight in retriever.question_encoder.parameters())
    assert bart.model.lm_head.weight.grad.abs().max() > 1e-3


@pytest.mark.parametrize("model_class", MODELS)
def test_a_frozen_retriever_changes_the_gradient_of_nothing_else(model_class, question_encoder, index, bart):
    gradients = []
    for trainable in (True, False):
        model = model_class(DenseRetriever(question_encoder, index, trainable), bart, 4)
        model.zero_grad()
        likelihood = model(model.prepare(QUESTIONS, ANSWERS))
        likelihood.logprob.sum().backward()
        gradients.append({name: w.grad.clone() for name, w in bart.model.named_parameters()})
        touched = [w.grad is not None and bool(w.grad.any()) for w in question_encoder.parameters()]
        assert any(touched) == trainable
        question_encoder.zero_grad()
    for name, gradient in gradients[0].items():
        assert_close(gradients[1][name], gradient, msg=name)


def test_the_step_that_gradients_ask_for_raises_the_likelihood(retriever, bart):
    """Training moves both parts: one small step uphill along each part's gradient alone is a gain."""
    model = RagToken(retriever, bart, 5)
    batch = model.prepare(QUESTIONS, ANSWERS)
    before = model(batch).logprob.sum()
    before.backward()
    for part in (retriever.question_encoder, bart):
        weights = [w for w in part.parameters() if w.grad is not None]
        norm = torch.stack([w.grad.square().sum() for w in weights]).sum().sqrt()
        step = 1e-3 / norm
        with torch.no_grad():
            for weight in weights:
                weight += step * weight.grad
            gain = model(batch).logprob.sum() - before
            for weight in weights:
                weight -= step * weight.grad
        assert_close(gain, 1e-3 * norm, rtol=0.05, atol=0)


# -- labels ----------------------------------------------------------------------------------


@pytest.mark.parametrize("model_class", MODELS)
def test_labels_of_minus_100_are_padding(model_class, retriever, bart):
    model = model_class(retriever, bart, 3)
    batch = model.prepare(QUESTIONS, ANSWERS)
    ignored = batch.labels.masked_fill(~batch.label_mask, -100)
    unmarked = dataclasses.replace(batch, labels=ignored, label_mask=torch.ones_like(batch.label_mask))
    assert_close(model(unmarked).logprob, model(batch).logprob, rtol=0, atol=0)


@pytest.mark.parametrize("model_class", MODELS)
def test_an_empty_answer_is_the_probability_of_ending_at_once(model_class, retriever, bart):
    model = model_class(retriever, bart, 3)
    likelihood = model(model.prepare(QUESTIONS[:1], [""]))
    priors, tokens = written_out(retriever, bart, QUESTIONS[0], "", 3)
    expected = math.log(sum(p * end for p, (end,) in zip(priors, tokens, strict=True)))
    assert_close(likelihood.logprob, torch.tensor([expected]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("model_class", [*MODELS, ClosedBook])
def test_a_forced_first_token_is_read_but_not_scored(model_class, retriever):
    """facebook/bart-large begins with <s>: log p(y) given it is log p(<s> y) − log p(<s>), by passage."""
    tokenizer = word_tokenizer()
    bart = Generator(tiny_bart(len(tokenizer)), tokenizer)
    model = ClosedBook(bart) if model_class is ClosedBook else model_class(retriever, bart, 3)
    batch = model.prepare(QUESTIONS, ANSWERS)
    with_start = dataclasses.replace(
        batch,
        labels=torch.nn.functional.pad(batch.labels, (1, 0), value=tokenizer.bos_token_id),
        label_mask=torch.nn.functional.pad(batch.label_mask, (1, 0), value=True),
    )
    scored = model(with_start).token_logprobs
    bart.model.generation_config.forced_bos_token_id = tokenizer.bos_token_id
    assert bart.first_token == tokenizer.bos_token_id
    forced = model(batch, want_smoothing=True)
    assert_close(forced.token_logprobs, scored[:, :, 1:])
    assert_close(forced.logprob, model.marginal(forced.doc_logprobs, scored[:, :, 1:], batch.label_mask))


# -- what a user can get wrong ---------------------------------------------------------------


@pytest.mark.parametrize("model_class", [*MODELS, ClosedBook])
def test_bad_batches(model_class, retriever, bart):
    model = ClosedBook(bart) if model_class is ClosedBook else model_class(retriever, bart)
    with pytest.raises(UserError, match="an empty batch: give at least one question"):
        model.prepare([])
    with pytest.raises(UserError, match="question 2 of 2 in the batch is empty"):
        model.prepare(["who?", " \n"])
    with pytest.raises(UserError, match="2 questions but 1 targets"):
        model.prepare(["who?", "what?"], ["Paris"])
    with pytest.raises(UserError, match="this batch has no targets"):
        model(model.prepare(QUESTIONS))


def test_bad_numbers_of_passages(retriever, bart):
    model = RagToken(retriever, bart)
    batch = model.prepare(QUESTIONS, ANSWERS)
    with pytest.raises(UserError, match="n_docs is 0: at least one passage"):
        model(batch, n_docs=0)
    with pytest.raises(UserError, match="K=8 passages cannot be found in an index of 7"):
        model(batch, n_docs=8)


def test_passages_that_were_not_found_count_as_impossible_and_one_warning_says_so(retriever, bart, caplog):
    """K = 3 with one miss gives the likelihood of the two found."""
    model = RagSequence(retriever, bart, n_docs=2)
    batch = model.prepare(QUESTIONS, ANSWERS)
    two = model(batch).logprob

    class Missing(DenseRetriever):
        def forward(self, questions, n_docs):
            retrieved = super().forward(questions, n_docs - 1)
            rows = torch.nn.functional.pad(torch.from_numpy(retrieved.rows), (0, 1), value=-1).numpy()
            return type(retrieved)(rows, torch.nn.functional.pad(retrieved.scores, (0, 1), value=-torch.inf))

    model = RagSequence(Missing(retriever.question_encoder, retriever.index), bart, n_docs=3)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert_close(model(batch).logprob, two)
    assert [record.getMessage() for record in caplog.records] == [
        "only 2 of n_docs = 3 passages were found for a question: the rest count as impossible"
    ]

"""Section 2.1 beside transformers.models.rag: retrieval, losses and every gradient, from the same weights.

First where transformers is right, then one test for each place where it is not: the right value worked out by
hand, and what transformers gives instead (docs/differences.md lists them).
"""

import copy
import dataclasses
import math

import datasets
import faiss
import pytest
import torch
from conftest import (
    ANSWERS,
    PASSAGES,
    QUESTIONS,
    byte_tokenizer,
    t5_tokenizer,
    tiny_bart,
    tiny_t5,
    word_tokenizer,
)
from torch import Tensor
from torch.testing import assert_close
from transformers import (
    RagConfig,
    RagRetriever,
    RagSequenceForGeneration,
    RagTokenForGeneration,
    T5ForConditionalGeneration,
)
from transformers.models.rag.retrieval_rag import CustomHFIndex

from rag.generators.seq2seq import Generator
from rag.model import Batch, Likelihood, RagModel, RagSequence, RagToken
from rag.retrievers.dense import DenseRetriever

KINDS = [
    pytest.param(RagToken, RagTokenForGeneration, id="token"),
    pytest.param(RagSequence, RagSequenceForGeneration, id="sequence"),
]
VOCABULARIES = [400, 50_264]  # the second is that of facebook/rag-*
RTOL = 1e-4

# transformers reads a question as its uncased encoder's tokenizer decodes it: lower-case words and spaces.
PLAIN_QUESTIONS = ["what is the capital of italy", "which river runs through it", "who wrote the sun"]


@pytest.fixture(params=VOCABULARIES)
def generator(request) -> Generator:
    """BART whose vocabulary may be larger than its tokenizer's, as BART's own is."""
    return Generator(tiny_bart(request.param), byte_tokenizer(size=400))


def reference(model: RagModel, reference_class, retrieve: bool = True, **settings):
    """transformers' model with a copy of the weights and, if `retrieve`, with its own retriever and index."""
    encoder, generator = model.retriever.question_encoder, model.generator
    config = RagConfig.from_question_encoder_generator_configs(
        encoder.model.config,
        generator.model.config,
        n_docs=model.n_docs,
        retrieval_vector_size=encoder.dim,
        max_combined_length=generator.max_context_length,
        **settings,
    )
    theirs = reference_class(
        config=config,
        question_encoder=copy.deepcopy(encoder.model),
        generator=copy.deepcopy(generator.model),
    ).eval()
    for mine, copied in zip(
        [*encoder.model.parameters(), *generator.model.parameters()],
        [*theirs.rag.question_encoder.parameters(), *theirs.rag.generator.parameters()],
        strict=True,
    ):
        assert torch.equal(mine, copied)
    if retrieve:
        theirs.rag.retriever = their_retriever(model, config)
    return theirs


def their_retriever(model: RagModel, config: RagConfig) -> RagRetriever:
    datasets.disable_progress_bars()
    index = model.retriever.index
    rows = list(range(len(index)))
    columns = {
        "title": [index.passages[row].title for row in rows],
        "text": [index.passages[row].text for row in rows],
        "embeddings": list(index.vectors(torch.tensor(rows).numpy())),
    }
    dataset = datasets.Dataset.from_dict(columns)
    dataset.add_faiss_index("embeddings", metric_type=faiss.METRIC_INNER_PRODUCT)
    tokenizers = model.retriever.question_encoder.tokenizer, model.generator.tokenizer
    return RagRetriever(config, *tokenizers, index=CustomHFIndex(index.dim, dataset))


def their_labels(batch: Batch, start: int, pad: int) -> Tensor:
    """[decoder_start] + labels, padded as transformers wants it."""
    labels = batch.labels.masked_fill(~batch.label_mask, pad)
    return torch.nn.functional.pad(labels, (1, 0), value=start)


def run_theirs(theirs, model: RagModel, batch: Batch, labels: Tensor | None = None, **settings):
    """transformers' forward pass from the question's tokens on: retrieval, contexts, generator, loss."""
    generator = model.generator
    if labels is None:
        labels = their_labels(batch, generator.start_token, generator.pad_token)
    return theirs(**batch.questions.tokens, labels=labels, output_retrieved=True, **settings)


def run_theirs_on_our_contexts(theirs, model: RagModel, batch: Batch, scores: Tensor, rows, labels: Tensor):
    """transformers' forward pass over contexts and scores that were given."""
    tokens = model.retriever.index.tokens(model.generator.tokenizer, show_progress=False)
    passages = type(batch.generator_questions)(*tokens.gather(rows.reshape(-1)))
    ids, mask = model.generator.assemble(batch.generator_questions.repeat(rows.shape[1]), passages)
    return theirs(context_input_ids=ids, context_attention_mask=mask.long(), doc_scores=scores, labels=labels)


# -- where transformers is right -------------------------------------------------------------


@pytest.mark.parametrize(("model_class", "reference_class"), KINDS)
def test_passages_scores_contexts_and_losses(model_class, reference_class, retriever, generator):
    model = model_class(retriever, generator, n_docs=4)
    batch = model.prepare(PLAIN_QUESTIONS, ANSWERS)
    theirs = run_theirs(reference(model, reference_class), model, batch)
    likelihood = model(batch)
    assert likelihood.retrieved.rows.tolist() == theirs.retrieved_doc_ids.tolist()
    assert_close(likelihood.retrieved.scores, theirs.doc_scores, rtol=RTOL, atol=0)
    _, mask = model.generator.assemble(
        batch.generator_questions.repeat(4),
        type(batch.generator_questions)(
            *retriever.index.tokens(generator.tokenizer).gather(likelihood.retrieved.rows.reshape(-1))
        ),
    )
    assert theirs.context_attention_mask.sum(dim=1).tolist() == mask.sum(dim=1).tolist()
    assert_close(-likelihood.logprob, theirs.loss, rtol=RTOL, atol=0)


@pytest.mark.parametrize(("model_class", "reference_class"), KINDS)
def test_the_gradient_of_every_parameter(model_class, reference_class, retriever, generator):
    model = model_class(retriever, generator, n_docs=4)
    batch = model.prepare(PLAIN_QUESTIONS, ANSWERS)
    theirs = reference(model, reference_class)
    run_theirs(theirs, model, batch).loss.sum().backward()
    (-model(batch).logprob).sum().backward()
    assert largest_gradient_difference(model, theirs) < RTOL


def largest_gradient_difference(model: RagModel, theirs) -> float:
    """Of |ours − theirs| / |theirs| over the parameters of both parts; none is left out on either side."""
    largest = 0.0
    for mine, reference_part in [
        (model.retriever.question_encoder.model, theirs.rag.question_encoder),
        (model.generator.model, theirs.rag.generator),
    ]:
        other = dict(reference_part.named_parameters())
        moved = 0
        for name, weight in mine.named_parameters():
            gradient = other.pop(name).grad
            if weight.grad is None or gradient is None:
                assert weight.grad is None and gradient is None, name
                continue
            if name.endswith(("k_proj.bias", "key.bias")):  # softmax does not see it: the gradient is zero
                assert max(weight.grad.abs().max(), gradient.abs().max()) < 1e-5, name
                continue
            largest = max(largest, float((weight.grad - gradient).norm() / gradient.norm()))
            moved += 1
        assert not other and moved > 10
    return largest


def with_first_token(batch: Batch, first: int) -> Batch:
    return dataclasses.replace(
        batch,
        labels=torch.nn.functional.pad(batch.labels, (1, 0), value=first),
        label_mask=torch.nn.functional.pad(batch.label_mask, (1, 0), value=True),
    )


@pytest.mark.parametrize(("model_class", "reference_class"), KINDS)
def test_answers_that_begin_with_bos(model_class, reference_class, retriever, generator):
    """Labels "<s> y </s>": the first token is scored as any other."""
    model = model_class(retriever, generator, n_docs=4)
    batch = with_first_token(model.prepare(PLAIN_QUESTIONS, ANSWERS), generator.tokenizer.bos_token_id)
    theirs = reference(model, reference_class)
    assert_close(-model(batch).logprob, run_theirs(theirs, model, batch).loss, rtol=RTOL, atol=0)


def test_exclude_bos_score(retriever, generator):
    """RAG-Sequence's exclude_bos_score: "<s>" is read but not scored, as a forced first token is here."""
    model = RagSequence(retriever, generator, n_docs=4)
    plain = model.prepare(PLAIN_QUESTIONS, ANSWERS)
    begun = with_first_token(plain, generator.tokenizer.bos_token_id)
    theirs = reference(model, RagSequenceForGeneration)
    result = run_theirs(theirs, model, begun, exclude_bos_score=True)
    result.loss.sum().backward()
    generator.model.generation_config.forced_bos_token_id = generator.tokenizer.bos_token_id
    logprob = model(plain).logprob
    (-logprob).sum().backward()
    assert_close(-logprob, result.loss, rtol=RTOL, atol=0)
    assert largest_gradient_difference(model, theirs) < RTOL


def test_exclude_bos_score_changes_nothing_without_bos(retriever, generator):
    model = RagSequence(retriever, generator, n_docs=4)
    batch = model.prepare(PLAIN_QUESTIONS, ANSWERS)
    theirs = reference(model, RagSequenceForGeneration)
    loss = run_theirs(theirs, model, batch, exclude_bos_score=True).loss
    assert_close(-model(batch).logprob, loss, rtol=RTOL, atol=0)


@pytest.mark.parametrize(("model_class", "reference_class"), KINDS)
def test_random_targets_over_the_whole_vocabulary(model_class, reference_class, retriever, generator):
    model = model_class(retriever, generator, n_docs=3)
    batch = model.prepare(PLAIN_QUESTIONS, ANSWERS)
    labels = torch.randint(3, generator.model.config.vocab_size, (3, 7))
    mask = torch.arange(7) < torch.tensor([[7], [3], [2]])
    batch = dataclasses.replace(batch, labels=labels.masked_fill(~mask, generator.pad_token), label_mask=mask)
    theirs = run_theirs(reference(model, reference_class), model, batch)
    assert_close(-model(batch).logprob, theirs.loss, rtol=RTOL, atol=0)


def test_t5_with_rag_token(retriever):
    tokenizer = t5_tokenizer()
    model = RagToken(retriever, Generator(tiny_t5(len(tokenizer)), tokenizer), n_docs=4)
    batch = model.prepare(QUESTIONS, ANSWERS)
    theirs = reference(model, RagTokenForGeneration, retrieve=False)
    likelihood = model(batch)
    labels = their_labels(batch, 0, 0)
    result = run_theirs_on_our_contexts(
        theirs, model, batch, likelihood.retrieved.scores, likelihood.retrieved.rows, labels
    )
    assert_close(-likelihood.logprob, result.loss, rtol=RTOL, atol=0)


# -- where it is not -------------------------------------------------------------------------


def by_hand(likelihood: Likelihood, row: int) -> tuple[list[float], list[list[float]]]:
    """p(z|x) and p(y_i|x,z,y_<i) of one question, as Python floats."""
    return likelihood.doc_logprobs[row].exp().tolist(), likelihood.token_logprobs[row].exp().tolist()


@pytest.mark.parametrize("target", ["one token", "empty"])
def test_the_prior_of_short_targets(target, retriever, bart):
    """A target of one token: transformers adds log p(z|x) at its second token, which is padding, and loses it.

    By hand: −log Σ_z p(z|x) p(y|x,z). transformers: −log Σ_z p(y|x,z), whatever the retriever says.
    """
    model = RagSequence(retriever, bart, n_docs=4)
    batch = model.prepare(QUESTIONS[:1], [""])
    if target == "one token":  # a class, as FEVER's, without end-of-sequence
        batch = dataclasses.replace(batch, labels=torch.tensor([[7]]))
    likelihood = model(batch)
    priors, tokens = by_hand(likelihood, 0)
    right = -math.log(sum(p * t[0] for p, t in zip(priors, tokens, strict=True)))
    lost = -math.log(sum(t[0] for t in tokens))
    assert_close(-likelihood.logprob, torch.tensor([right]))

    theirs = reference(model, RagSequenceForGeneration, retrieve=False)
    scores = likelihood.retrieved.scores.detach().requires_grad_()
    loss = run_theirs_on_our_contexts(
        theirs, model, batch, scores, likelihood.retrieved.rows, their_labels(batch, 2, 1)
    ).loss
    assert_close(loss, torch.tensor([lost]))
    loss.sum().backward()
    assert (scores.grad == 0).all()  # the retriever learns nothing from such a target
    likelihood.logprob.sum().backward()
    assert any(
        w.grad.abs().max() > 1e-3 for w in retriever.question_encoder.parameters() if w.grad is not None
    )


@pytest.mark.parametrize(("model_class", "reference_class"), KINDS)
def test_label_smoothing_leaves_the_retriever_alone(model_class, reference_class, retriever, bart):
    """The uniform part alone (ε = 1), with one passage four times over: nothing can be learned of retrieval.

    In transformers the prior is inside the sum over V, so that this part raises the passage that is on top
    (RAG-Sequence), or still moves it if passages differ (RAG-Token). Here it has no gradient for the scores.
    """
    model = model_class(retriever, bart, n_docs=4)
    batch = model.prepare(QUESTIONS, ANSWERS)
    retrieved = retriever(batch.questions, 4)
    theirs = reference(model, reference_class, retrieve=False, label_smoothing=1.0)
    labels = their_labels(batch, 2, 1)
    rows = retrieved.rows[:, :1].repeat(4, axis=1) if model_class is RagSequence else retrieved.rows
    scores = torch.tensor([[0.4, 0.3, 0.2, 0.1]]).repeat(3, 1).requires_grad_()
    run_theirs_on_our_contexts(theirs, model, batch, scores, rows, labels).loss.sum().backward()
    assert scores.grad.abs().max() > 1e-3
    if model_class is RagSequence:  # a step against the gradient raises the top passage, lowers the others
        assert (scores.grad[:, 0] < 0).all() and (scores.grad[:, 1:] > 0).all()
    model(batch, want_smoothing=True).smoothing.sum().backward()
    assert all(weight.grad is None for weight in retriever.question_encoder.parameters())


@pytest.mark.parametrize(("model_class", "reference_class"), KINDS)
def test_labels_of_minus_100(model_class, reference_class, retriever, bart):
    """The padding every other transformers model ignores: an error there, padding here."""
    model = model_class(retriever, bart, n_docs=2)
    batch = model.prepare(QUESTIONS, ANSWERS)
    likelihood = model(batch)
    labels = their_labels(batch, 2, -100)
    theirs = reference(model, reference_class, retrieve=False)
    with pytest.raises(IndexError):
        run_theirs_on_our_contexts(
            theirs, model, batch, likelihood.retrieved.scores, likelihood.retrieved.rows, labels
        )
    marked = dataclasses.replace(batch, labels=labels[:, 1:], label_mask=torch.ones_like(batch.label_mask))
    assert_close(model(marked).logprob, likelihood.logprob, rtol=0, atol=0)


def test_the_question_survives_a_long_passage(retriever):
    """30 tokens of context, a passage of more: transformers cuts on the right, where the question stands."""
    tokenizer = word_tokenizer([*(" / ".join(p) for p in PASSAGES), *PLAIN_QUESTIONS])
    generator = Generator(tiny_bart(len(tokenizer)), tokenizer, max_context_length=14)
    model = RagSequence(retriever, generator, n_docs=2)
    batch = model.prepare(PLAIN_QUESTIONS[:1], ANSWERS[:1])
    theirs = run_theirs(reference(model, RagSequenceForGeneration), model, batch)
    texts = tokenizer.batch_decode(theirs.context_input_ids, skip_special_tokens=True)
    assert all("italy" not in text for text in texts)
    contexts = model.read(batch)
    assert contexts.mask.sum(dim=1).tolist() == [14, 14]
    passages = retriever.index.tokens(tokenizer).gather(contexts.retrieved.rows.reshape(-1))
    ids, _ = generator.assemble(
        batch.generator_questions.repeat(2), type(batch.generator_questions)(*passages)
    )
    for text in tokenizer.batch_decode(ids, skip_special_tokens=True):
        assert text.endswith("// " + PLAIN_QUESTIONS[0])


def test_t5_with_rag_sequence(retriever):
    """T5's config has no bos_token_id, which transformers asks for; by the formula it is like any other."""
    tokenizer = t5_tokenizer()
    t5: T5ForConditionalGeneration = tiny_t5(len(tokenizer))
    model = RagSequence(retriever, Generator(t5, tokenizer), n_docs=3)
    batch = model.prepare(QUESTIONS, ANSWERS)
    likelihood = model(batch)
    theirs = reference(model, RagSequenceForGeneration, retrieve=False)
    with pytest.raises(AttributeError, match="bos_token_id"):
        run_theirs_on_our_contexts(
            theirs,
            model,
            batch,
            likelihood.retrieved.scores,
            likelihood.retrieved.rows,
            their_labels(batch, 0, 0),
        )
    for row, (question, answer) in enumerate(zip(QUESTIONS, ANSWERS, strict=True)):
        labels = tokenizer(answer, return_tensors="pt")["input_ids"]
        total = 0.0
        for prior, passage in zip(by_hand(likelihood, row)[0], likelihood.retrieved.rows[row], strict=True):
            context = tokenizer(" / ".join(PASSAGES[passage]) + " // " + question, return_tensors="pt")
            mean_loss = t5(**context, labels=labels).loss.item()  # T5's own, over one unpadded string
            total += prior * math.exp(-mean_loss * labels.shape[1])
        assert_close(likelihood.logprob[row].item(), math.log(total), rtol=RTOL, atol=0)


def test_the_whole_question_is_read(retriever, bart):
    """transformers' generator reads what the uncased question encoder's tokenizer makes of the question."""
    model = DenseRetriever(retriever.question_encoder, retriever.index)
    rag = RagSequence(model, bart, n_docs=1)
    batch = rag.prepare(["which river runs through Rome"], ANSWERS[:1])
    theirs = run_theirs(reference(rag, RagSequenceForGeneration), rag, batch)
    [text] = bart.tokenizer.batch_decode(theirs.context_input_ids, skip_special_tokens=True)
    assert text.endswith("runs through")  # "rome" is unknown to a cased generator
    assert bart.tokenizer.decode(batch.generator_questions.tokens) == "// which river runs through Rome"

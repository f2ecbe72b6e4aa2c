"""Appendix E: FEVER's two forms of classification, against formulas written out passage by passage."""

import math

import pytest
import torch
from conftest import PASSAGES, t5_tokenizer, tiny_bart, tiny_t5, word_tokenizer
from safetensors.torch import load_file
from torch.testing import assert_close
from transformers import BartForSequenceClassification

from rag import marginalize
from rag.classify import Classifier, HeadClassifier, TokenClassifier
from rag.decoding.generation import generate, generate_for_each
from rag.decoding.settings import Decoding
from rag.errors import UserError
from rag.generators.seq2seq import Generator
from rag.model import ClosedBook, RagSequence, RagToken
from rag.parts import save_parts

CLAIMS = ["Paris is the capital of Italy", "The Seine is a river", "Hemingway wrote it in 1926 ."]
CLASSES = ["capital", "river", "sea"]  # words that both tokenizers know
TARGETS = ["river", "capital", "sea"]
FORMS = [HeadClassifier, TokenClassifier]


@pytest.fixture(params=[RagSequence, RagToken, ClosedBook])
def model(request, retriever, bart):
    return ClosedBook(bart) if request.param is ClosedBook else request.param(retriever, bart, n_docs=3)


def contexts_of(model, row: int, claim: str) -> tuple[list[float], list[str]]:
    """Priors and joined contexts of one claim."""
    if isinstance(model, ClosedBook):
        return [1.0], [claim]
    retrieved = model.retriever(model.retriever.prepare([claim]), model.n_docs)
    texts = [" / ".join(PASSAGES[passage]) + " // " + claim for passage in retrieved.rows[0]]
    return retrieved.scores[0].softmax(dim=0).tolist(), texts


def by_formula(classifier: Classifier, row: int, claim: str) -> list[float]:
    """p(c|x) of every class: Σ_z p(z|x) p(c|x,z), each p(c|x,z) from one unpadded context."""
    generator = classifier.generator
    tokenizer, network = generator.tokenizer, generator.model
    totals = [0.0] * len(CLASSES)
    for prior, context in zip(*contexts_of(classifier.model, row, claim), strict=True):
        encoded = tokenizer(context, return_tensors="pt")
        if isinstance(classifier, TokenClassifier):
            logits = network(**encoded, decoder_input_ids=torch.tensor([[generator.start_token]])).logits
            ids = tokenizer.convert_tokens_to_ids(CLASSES)
            probabilities = logits[0, -1].softmax(dim=-1)[ids]
        else:
            begun = [tokenizer.bos_token_id] if tokenizer.bos_token else []  # T5's claims begin with nothing
            claim_ids = tokenizer(claim, add_special_tokens=False)["input_ids"]
            states = network(
                **encoded,
                decoder_input_ids=torch.tensor([[generator.start_token, *begun, *claim_ids]]),
                output_hidden_states=True,
            ).decoder_hidden_states[-1]
            probabilities = classifier.head(states[0, -1]).softmax(dim=-1)
        for number, probability in enumerate(probabilities.tolist()):
            totals[number] += prior * probability
    return totals


@pytest.mark.parametrize("form", FORMS)
def test_class_probabilities_are_marginal_over_passages(form, model):
    """The prior counts, though the target has one token; padding of claims and contexts changes nothing."""
    classifier = form(model, CLASSES).eval()
    likelihood = classifier(classifier.prepare(CLAIMS, TARGETS))
    for row, (claim, target) in enumerate(zip(CLAIMS, TARGETS, strict=True)):
        expected = by_formula(classifier, row, claim)
        assert_close(
            likelihood.logprob[row].item(), math.log(expected[CLASSES.index(target)]), rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize("form", FORMS)
def test_answers_are_the_classes_likeliest_first(form, model):
    classifier = form(model, CLASSES).eval()
    contexts = classifier.read(classifier.prepare(CLAIMS))
    for row, (claim, answers) in enumerate(
        zip(CLAIMS, generate(classifier, contexts, Decoding()), strict=True)
    ):
        expected = dict(zip(CLASSES, by_formula(classifier, row, claim), strict=True))
        assert [answer.text for answer in answers] == sorted(CLASSES, key=lambda c: -expected[c])
        for answer in answers:
            assert_close(answer.logprob, math.log(expected[answer.text]), rtol=1e-5, atol=1e-5)
            joint = answer.doc_logprobs + answer.doc_scores
            assert_close(answer.posterior, joint.softmax(dim=0))
            assert_close(answer.logprob, joint.logsumexp(dim=0).item(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_fewer_passages_of_those_read(form, retriever, bart):
    classifier = form(RagSequence(retriever, bart, 4), CLASSES).eval()
    batch = classifier.prepare(CLAIMS)
    several = generate_for_each(classifier, classifier.read(batch), Decoding(), [1, 2, 4])
    for docs, answers in several.items():
        alone = generate(classifier, classifier.read(batch, docs), Decoding())
        for one, other in zip(answers, alone, strict=True):
            assert [a.text for a in one] == [a.text for a in other]
            assert_close([a.logprob for a in one], [a.logprob for a in other], rtol=1e-5, atol=1e-5)


def test_the_head_is_barts_own_form(bart):
    """BartForSequenceClassification on the claim, its head copied: the same logits from the same final state."""
    classifier = HeadClassifier(ClosedBook(bart), CLASSES).eval()
    config = bart.model.config.__class__(**(bart.model.config.to_dict() | {"num_labels": 3}))
    theirs = BartForSequenceClassification(config).eval()
    theirs.model.load_state_dict(bart.model.model.state_dict())
    theirs.classification_head.dense.load_state_dict(classifier.head[1].state_dict())
    theirs.classification_head.out_proj.load_state_dict(classifier.head[4].state_dict())
    contexts = classifier.read(classifier.prepare(CLAIMS))
    for row, claim in enumerate(CLAIMS):
        logits = theirs(**bart.tokenizer(claim, return_tensors="pt")).logits
        assert_close(
            classifier.class_logprobs(contexts)[row], logits.log_softmax(dim=-1), rtol=1e-5, atol=1e-5
        )


def test_the_token_form_is_the_models_likelihood_of_a_one_token_target(retriever, bart):
    classifier = TokenClassifier(RagToken(retriever, bart, 3), CLASSES)
    batch = classifier.prepare(CLAIMS, TARGETS)
    for model_class in (RagToken, RagSequence):
        ids = torch.tensor([[bart.tokenizer.convert_tokens_to_ids(target)] for target in TARGETS])
        plain = model_class(retriever, bart, 3)
        one_token = type(batch)(batch.questions, batch.generator_questions, ids, batch.label_mask)
        assert_close(classifier(batch).logprob, plain(one_token).logprob)


@pytest.mark.parametrize("form", FORMS)
def test_every_part_learns(form, retriever, bart):
    classifier = form(RagSequence(retriever, bart, 3), CLASSES)
    likelihood = classifier(classifier.prepare(CLAIMS, TARGETS))
    likelihood.logprob.sum().backward()
    assert any(w.grad is not None and w.grad.any() for w in retriever.question_encoder.parameters())
    assert bart.model.get_encoder().layers[0].fc1.weight.grad.any()
    if form is HeadClassifier:
        assert all(weight.grad.any() for weight in classifier.head.parameters())


@pytest.mark.parametrize("form", FORMS)
def test_smoothing_is_over_the_classes_and_for_the_generator_alone(form, retriever, bart):
    classifier = form(RagSequence(retriever, bart, 3), CLASSES).eval()
    batch = classifier.prepare(CLAIMS, TARGETS)
    smoothing = classifier(batch, want_smoothing=True).smoothing
    contexts = classifier.read(batch)
    by_hand = -(contexts.doc_logprobs.exp() * classifier.class_logprobs(contexts).mean(dim=2)).sum(dim=1)
    assert_close(smoothing, by_hand)
    smoothing.sum().backward()
    assert all(weight.grad is None for weight in retriever.question_encoder.parameters())


def test_t5_and_a_forced_first_token(retriever):
    tokenizer = word_tokenizer()
    network = tiny_bart(len(tokenizer))
    network.generation_config.forced_bos_token_id = 0
    classifier = TokenClassifier(ClosedBook(Generator(network, tokenizer)), CLASSES)
    class_logprobs = classifier.class_logprobs(classifier.read(classifier.prepare(CLAIMS[:1])))
    encoded = tokenizer(CLAIMS[0], return_tensors="pt")
    logits = network(**encoded, decoder_input_ids=torch.tensor([[2, 0]])).logits[0, -1]
    ids = tokenizer.convert_tokens_to_ids(CLASSES)
    assert_close(class_logprobs[0, 0], logits.log_softmax(dim=-1)[ids])

    pieces = t5_tokenizer()
    t5 = Generator(tiny_t5(len(pieces)), pieces)
    head = HeadClassifier(RagToken(retriever, t5, 2), CLASSES).eval()
    likelihood = head(head.prepare(CLAIMS, TARGETS))
    expected = by_formula(head, 0, CLAIMS[0])[CLASSES.index(TARGETS[0])]
    assert_close(likelihood.logprob[0].item(), math.log(expected), rtol=1e-4, atol=1e-5)


def test_a_saved_head_comes_back(retriever, bart, tmp_path):
    model = RagSequence(retriever, bart, 2)
    saved = HeadClassifier(model, CLASSES)
    (part,) = [part for part in saved.trained_parts() if part.module is saved.head]
    save_parts([part], tmp_path)
    assert part.file == "head.safetensors"
    classifier = HeadClassifier.from_pretrained(tmp_path / "head.safetensors", model, CLASSES)
    file = load_file(tmp_path / "head.safetensors")
    assert file and all(
        torch.equal(value, file[name]) for name, value in classifier.head.state_dict().items()
    )
    with pytest.raises(
        UserError, match=r"head.safetensors does not hold the weights of this Sequential \(size mismatch"
    ):
        HeadClassifier.from_pretrained(tmp_path / "head.safetensors", model, CLASSES[:2])
    with pytest.raises(UserError, match="none.safetensors does not hold"):
        HeadClassifier.from_pretrained(tmp_path / "none.safetensors", model, CLASSES)


def test_what_a_user_can_get_wrong(retriever, bart):
    model = RagSequence(retriever, bart, 2)
    with pytest.raises(UserError, match="classes are river: give at least two"):
        HeadClassifier(model, ["river"])
    with pytest.raises(UserError, match="classes are river, river: give at least two, each once"):
        HeadClassifier(model, ["river", "river"])
    with pytest.raises(UserError, match="the class 'the river' is 2 tokens of this generator"):
        TokenClassifier(model, ["the river", "sea"])
    with pytest.raises(UserError, match="two of the classes nonsense, rubbish are the same token"):
        TokenClassifier(model, ["nonsense", "rubbish"])  # both unknown
    classifier = TokenClassifier(model, CLASSES)
    with pytest.raises(UserError, match="'lake' is none of the classes capital, river, sea"):
        classifier.prepare(CLAIMS, ["river", "lake", "sea"])
    with pytest.raises(UserError, match="3 claims but 1 classes"):
        classifier.prepare(CLAIMS, ["river"])
    with pytest.raises(UserError, match="this batch has no classes"):
        classifier(classifier.prepare(CLAIMS))


def test_misses_have_no_part(retriever, bart):
    classifier = TokenClassifier(RagSequence(retriever, bart, 3), CLASSES).eval()
    contexts = classifier.read(classifier.prepare(CLAIMS))
    missed = contexts.doc_logprobs.detach().clone()
    missed[:, 2] = -torch.inf
    by_passage = classifier.class_logprobs(contexts)
    two = marginalize.next_token_logprobs(marginalize.doc_logprobs(missed[:, :2]), by_passage[:, :2])
    all_three = marginalize.next_token_logprobs(marginalize.doc_logprobs(missed), by_passage)
    assert_close(all_three, two)

"""retriever=dense_trained: p_η(z|x) from vectors that the passage encoder makes in the step, and what it learns by."""

import copy

import numpy as np
import pytest
import torch
from conftest import (
    ANSWERS,
    PASSAGES,
    QUESTIONS,
    bert_tokenizer,
    build_tiny_index,
    tiny_bart,
    tiny_passage_encoder,
    word_tokenizer,
)
from sentence_folders import tiny_transformer, write_modules
from torch.testing import assert_close

from rag import objectives
from rag.encoders.dpr import PassageEncoder, QuestionEncoder
from rag.encoders.opening import open_passage_encoder, open_question_encoder
from rag.errors import UserError
from rag.generators.seq2seq import Generator
from rag.index.faiss_types import IndexType
from rag.index.passage import Passage
from rag.index.vectors import UNKNOWN, EncoderInfo
from rag.model import RagSequence, RagToken
from rag.retrievers import DenseRetriever, ExactRetriever, FreshPassages
from rag.training.optimization import Optimization

ALL = [Passage(str(number), *passage) for number, passage in enumerate(PASSAGES)]


@pytest.fixture
def trained(passage_encoder) -> PassageEncoder:
    """The index's encoder, a copy that a test may train; without dropout."""
    return copy.deepcopy(passage_encoder).eval()


def moved(encoder, by=0.05):
    """The same encoder after a step of training: other vectors than the index's."""
    torch.manual_seed(5)
    with torch.no_grad():
        for weight in encoder.parameters():
            weight += by * torch.randn_like(weight)
    return encoder


def whole(question_encoder, index, encoder, n_docs=3, kind=DenseRetriever, **settings):
    fresh = {name: settings.pop(name) for name in ("tokens_at_once", "tokens_kept") if name in settings}
    retriever = kind(
        question_encoder,
        index,
        passage_encoder=FreshPassages(encoder, **fresh),
        **{"trainable": "both"} | settings,
    )
    return retriever.eval()


def test_vectors_of_an_untouched_encoder_are_the_index_s(question_encoder, index, trained):
    retriever = whole(question_encoder, index, trained, tokens_at_once=20)
    rows = np.array([[2, 0, -1], [5, 2, 6]])
    fresh = retriever.fresh(index.passages, rows)
    assert_close(fresh[rows >= 0], torch.from_numpy(index.vectors(rows))[rows >= 0])
    assert fresh.shape == (2, 3, 16) and fresh.requires_grad
    asked = retriever.prepare(QUESTIONS)
    plain = DenseRetriever(question_encoder, index)(asked, 4)
    retrieved = retriever(asked, 4)
    assert retrieved.rows.tolist() == plain.rows.tolist()
    assert_close(retrieved.scores, plain.scores)


@pytest.mark.parametrize("model", [RagSequence, RagToken])
def test_a_frozen_passage_encoder_changes_no_bit_of_loss_and_gradients(
    question_encoder, index, trained, model
):
    """The reference is section 2.2 written out over the index's vectors, as it was before there was an encoder here."""

    def losses(retriever):
        torch.manual_seed(3)
        generator = Generator(tiny_bart(len(word_tokenizer())), word_tokenizer())
        made = model(retriever, generator, 3)
        loss = -made(made.prepare(QUESTIONS, ANSWERS)).logprob.sum()
        made.zero_grad()
        loss.backward()
        return loss, [w.grad.clone() for w in made.parameters() if w.grad is not None]

    class WrittenOut(DenseRetriever):
        def retrieve(self, queries, n_docs):
            rows = self.index.search(queries.detach().cpu().numpy(), n_docs)[1]
            vectors = torch.from_numpy(self.index.vectors(rows))
            return self.with_null_document(queries, rows, 1.0 * torch.einsum("bd,bkd->bk", queries, vectors))

    expected = losses(WrittenOut(question_encoder, index))
    for retriever in (
        whole(question_encoder, index, trained, trainable="query"),
        DenseRetriever(question_encoder, index, trainable="query"),
    ):
        loss, gradients = losses(retriever)
        assert torch.equal(loss, expected[0]) and len(gradients) == len(expected[1])
        assert all(map(torch.equal, gradients, expected[1]))
    assert all(weight.grad is None for weight in trained.parameters())


def in_float64(question_encoder, index, encoder, model, **settings):
    retriever = whole(question_encoder, index, encoder, **settings)
    moved(encoder)
    generator = Generator(tiny_bart(len(word_tokenizer()), dropout=0.0), word_tokenizer())
    made = model(retriever, generator, 3).double().eval()
    return made, made.prepare(QUESTIONS, ANSWERS)


@pytest.mark.parametrize("model", [RagSequence, RagToken])
@pytest.mark.parametrize("overfetch", [None, 6])
def test_the_gradient_of_the_passage_encoder_equals_finite_differences(
    question_encoder, index, trained, model, overfetch
):
    made, batch = in_float64(question_encoder, index, trained, model, overfetch=overfetch, tokens_at_once=30)

    def loss():
        return -made(batch).logprob.sum()

    loss().backward()
    weights = [w for w in trained.parameters() if w.grad is not None]
    assert sum(float(w.grad.abs().sum()) for w in weights) > 1e-3
    generator = torch.Generator().manual_seed(11)
    for _ in range(3):
        direction = [torch.randn(w.shape, dtype=w.dtype, generator=generator) for w in weights]
        slope = sum(float((w.grad * d).sum()) for w, d in zip(weights, direction, strict=True))
        ends = []
        for step in (1e-6, -2e-6):
            with torch.no_grad():
                for weight, d in zip(weights, direction, strict=True):
                    weight += step * d
                ends.append(float(loss()))
        with torch.no_grad():
            for weight, d in zip(weights, direction, strict=True):
                weight += 1e-6 * d
        assert slope == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("model", [RagSequence, RagToken])
def test_loss_and_gradients_equal_all_passages_encoded_at_once(question_encoder, index, trained, model):
    """The brute force: d(z) of the whole corpus, softmax over the K best of the index, each passage read alone."""
    made, batch = in_float64(question_encoder, index, trained, model, tokens_at_once=30)
    likelihood = made(batch)
    (-likelihood.logprob.sum()).backward()
    learned = {name: w.grad.clone() for name, w in made.retriever.named_parameters() if w.grad is not None}
    assert any("passage_encoder" in name for name in learned)
    made.zero_grad()
    queries = question_encoder(**question_encoder.tokenize(QUESTIONS))
    scores = queries @ trained(**trained.tokenize(ALL)).T
    rows = torch.from_numpy(index.search(queries.detach().float().numpy(), 3)[1])
    prior = scores.gather(1, rows).log_softmax(dim=1)
    tokens = likelihood.token_logprobs.detach()
    for number, found in enumerate(likelihood.retrieved.rows):
        places = [found.tolist().index(row) for row in rows[number].tolist()]
        joint = tokens[number][places]
        mask = batch.label_mask[number]
        if model is RagSequence:
            logprob = (prior[number] + joint[:, mask].sum(dim=1)).logsumexp(dim=0)
        else:
            logprob = (prior[number, :, None] + joint[:, mask]).logsumexp(dim=0).sum()
        assert_close(logprob, likelihood.logprob[number].detach())
        (-logprob).backward(retain_graph=True)
    for name, weight in made.retriever.named_parameters():
        if name in learned:
            assert_close(learned[name], weight.grad, rtol=1e-8, atol=1e-10, msg=name)


def test_parts_computed_again_give_the_gradients_of_those_that_are_kept(question_encoder, index, trained):
    gradients = {}
    for kept, at_once in ((10_000, 10_000), (0, 10_000), (0, 20), (40, 20)):
        made = whole(question_encoder, index, trained, tokens_kept=kept, tokens_at_once=at_once)
        trained.zero_grad()
        made(made.prepare(QUESTIONS), 4).doc_logprobs[:, 0].sum().backward()
        gradients[kept, at_once] = [w.grad.clone() for w in trained.parameters() if w.grad is not None]
    first, *others = gradients.values()
    for other in others:
        for one, same in zip(first, other, strict=True):
            assert_close(same, one, rtol=1e-4, atol=1e-6)


def test_a_part_at_a_time_is_held_in_memory(question_encoder, index, trained):
    """What autograd keeps of the encoder does not grow with the number of passages beyond the tokens that are kept."""
    kept = {}
    for tokens_kept in (0, 40, 10_000):
        made = whole(question_encoder, index, trained, tokens_kept=tokens_kept, tokens_at_once=20)
        held = []
        hooks = torch.autograd.graph.saved_tensors_hooks(
            lambda t, held=held: held.append(t.numel()) or t, lambda t: t
        )
        with hooks:
            made.fresh(index.passages, np.arange(len(PASSAGES)))
        kept[tokens_kept] = sum(held)
    assert kept[0] < kept[40] < kept[10_000] and kept[0] < kept[10_000] / 20


def test_duplicates_are_encoded_once(question_encoder, index, trained):
    made, seen = whole(question_encoder, index, trained), []
    trained.register_forward_pre_hook(
        lambda module, given, named: seen.append(len(named["input_ids"])), with_kwargs=True
    )
    rows = np.array([[1, 3, 1], [3, 3, -1]])
    vectors = made.fresh(index.passages, rows)
    assert sum(seen) == 3  # rows 1 and 3, and any one for the miss
    assert torch.equal(vectors[0, 0], vectors[0, 2]) and torch.equal(vectors[0, 1], vectors[1, 0])


def test_overfetch_chooses_among_the_index_s_candidates_by_fresh_vectors(question_encoder, index, trained):
    made = whole(question_encoder, index, trained, overfetch=len(PASSAGES))
    plain = whole(question_encoder, index, copy.deepcopy(trained))
    plain.fresh.encoder = moved(trained, 0.3)
    asked = made.prepare(QUESTIONS)
    scores = question_encoder(**asked.tokens) @ trained(**trained.tokenize(ALL)).T
    best = scores.sort(dim=1, descending=True)
    retrieved = made(asked, 2)
    assert retrieved.rows.tolist() == best.indices[:, :2].tolist()
    assert_close(retrieved.scores, best.values[:, :2])
    assert made.find(asked, 2).tolist() == retrieved.rows.tolist()
    stale = index.search(question_encoder(**asked.tokens).detach().numpy(), 2)[1]
    assert stale.tolist() != retrieved.rows.tolist()
    # without it, the index's K in the order of fresh scores
    retrieved = plain(asked, 2)
    assert [set(row) for row in retrieved.rows.tolist()] == [set(row) for row in stale.tolist()]
    assert (retrieved.scores[:, 0] >= retrieved.scores[:, 1]).all()


def test_exact_search_and_a_compressed_index(tmp_path, question_encoder, passage_encoder, trained):
    """An index that keeps eight bits of a number proposes; fresh vectors score."""
    index = build_tiny_index(tmp_path / "sq8", passage_encoder, kind=IndexType("SQ8", refine=1))
    expected = None
    for kind in (DenseRetriever, ExactRetriever):
        made = whole(question_encoder, index, trained, kind=kind)
        retrieved = made(made.prepare(QUESTIONS), 7)
        scores = question_encoder(**question_encoder.tokenize(QUESTIONS)) @ trained(**trained.tokenize(ALL)).T
        assert_close(retrieved.scores, scores.gather(1, torch.from_numpy(retrieved.rows)))
        expected = expected or retrieved.rows.tolist()
        assert retrieved.rows.tolist() == expected


@pytest.mark.parametrize("trainable", ["query", "passage", "both", False])
def test_what_is_trained_learns_and_nothing_else(question_encoder, index, trained, trainable):
    made = whole(question_encoder, index, trained, trainable=trainable)
    made.train()
    assert question_encoder.training is (trainable in ("query", "both"))
    assert made.passage_encoder.encoder.training is (trainable in ("passage", "both"))
    model = RagToken(made, Generator(tiny_bart(len(word_tokenizer())), word_tokenizer()), 3)
    rates = Optimization(lr=1e-2, question_encoder_lr=2e-3, passage_encoder_lr=3e-4, warmup_steps=0)
    optimizer = rates.configure(model.trained_parts(), 10)["optimizer"]
    of_passages = {id(weight) for weight in trained.parameters()}
    for group in optimizer.param_groups:
        is_passages = {id(weight) in of_passages for weight in group["params"]}
        assert is_passages == {group["initial_lr"] == 3e-4}
    before = {name: w.clone() for name, w in model.named_parameters()}
    (-model(model.prepare(QUESTIONS, ANSWERS)).logprob.sum()).backward()
    optimizer.step()
    changed = {name for name, w in model.named_parameters() if not torch.equal(w, before[name])}
    assert any("question_encoder" in name for name in changed) is (trainable in ("query", "both"))
    assert any("passage_encoder" in name for name in changed) is (trainable in ("passage", "both"))


@pytest.mark.parametrize("loss", [objectives.emdr2, objectives.pdist, objectives.loop, objectives.replug])
def test_every_loss_of_the_retriever_reaches_the_passage_encoder(question_encoder, index, trained, loss):
    made = whole(question_encoder, index, trained)
    tokens = -torch.rand(3, 4, 5)
    loss(
        made(made.prepare(QUESTIONS), 4).doc_logprobs, tokens, torch.ones(3, 5, dtype=torch.bool)
    ).sum().backward()
    assert sum(float(w.grad.abs().sum()) for w in trained.parameters() if w.grad is not None) > 1e-4


@pytest.fixture
def sentences(tmp_path):
    """An encoder in sentence-transformers' format and an index by it."""
    folder = write_modules(tiny_transformer(tmp_path / "encoder"), prompts={"query": "q: ", "passage": "p: "})
    index = build_tiny_index(
        tmp_path / "index", encoder := open_passage_encoder(folder), info=encoder.describe()
    )
    return folder, index


def test_one_set_of_weights_for_both_sides(sentences):
    folder, index = sentences
    question_encoder = open_question_encoder(folder)
    made = DenseRetriever(question_encoder, index, "both", passage_encoder=FreshPassages()).eval()
    assert made.fresh.encoder.embedder is question_encoder.embedder
    asked = made.prepare(QUESTIONS)
    assert_close(made(asked, 4).scores, DenseRetriever(open_question_encoder(folder), index)(asked, 4).scores)
    apart = whole(open_question_encoder(folder), index, open_passage_encoder(folder))
    for each in (made, apart):
        each(asked, 4).doc_logprobs[:, 0].sum().backward()
    for (name, shared), one, other in zip(
        question_encoder.named_parameters(),
        apart.question_encoder.parameters(),
        apart.fresh.encoder.parameters(),
        strict=True,
    ):
        if shared.grad is not None:
            assert_close(shared.grad, one.grad + other.grad, rtol=1e-4, atol=1e-6, msg=name)
    for side in ("query", "passage"):
        with pytest.raises(
            UserError, match="both sides share one set of weights: take retriever.trainable=both"
        ):
            DenseRetriever(open_question_encoder(folder), index, side, passage_encoder=FreshPassages())


def test_a_saved_whole_refuses_the_index_it_started_from_and_says_how_to_build_its_own(tmp_path, sentences):
    folder, index = sentences
    made = DenseRetriever.from_pretrained(
        folder, index.folder, "both", passage_encoder=FreshPassages.from_pretrained(folder)
    )
    moved(made.fresh.encoder)
    for part in made.trained_parts():
        part.save(tmp_path / "model" / part.file)
    said = r"build one with build_index.py passage_encoder=.*model/passage_encoder index.path=FOLDER"
    with pytest.raises(UserError, match=said):
        DenseRetriever.from_pretrained(tmp_path / "model" / "question_encoder", index.folder)
    encoder = open_passage_encoder(tmp_path / "model" / "passage_encoder")
    own = build_tiny_index(tmp_path / "own", encoder, info=encoder.describe())
    reopened = DenseRetriever.from_pretrained(tmp_path / "model" / "question_encoder", own.folder)
    asked = made.eval().prepare(QUESTIONS)
    assert_close(reopened.eval()(asked, 7).scores, made(asked, 7).scores)
    with pytest.raises(UserError, match=said):
        reopened.swap(index)


def test_what_is_refused(tmp_path, question_encoder, index, trained, passage_encoder):
    def refused(match, **settings):
        with pytest.raises(UserError, match=match):
            given = settings.pop("passage_encoder", None)
            DenseRetriever(question_encoder, settings.pop("index", index), passage_encoder=given, **settings)

    refused("trainable=all does not exist; available: query, passage, both, and false", trainable="all")
    refused("trainable=passage trains the passage encoder, and this retriever has none", trainable="passage")
    refused("overfetch=0: a whole number from n_docs on is expected", overfetch=0)
    refused("this one has no passage side", trainable="both", passage_encoder=FreshPassages())
    other = PassageEncoder(tiny_passage_encoder(len(bert_tokenizer())), bert_tokenizer())
    refused(
        r"was embedded by tiny \(weights .*\), but the passage encoder to be trained is .* \(weights",
        trainable="both",
        passage_encoder=FreshPassages(other),
    )
    unknown = build_tiny_index(
        tmp_path / "ready", passage_encoder, info=EncoderInfo("somebody's", UNKNOWN, UNKNOWN)
    )
    refused(
        "ready holds vectors of somebody's whose weights are not known",
        index=unknown,
        trainable="both",
        passage_encoder=FreshPassages(trained),
    )
    with pytest.raises(UserError, match="tokens_at_once=0: give a whole number above 0"):
        FreshPassages(trained, tokens_at_once=0)
    made = whole(question_encoder, index, trained, overfetch=3)
    with pytest.raises(
        UserError,
        match="overfetch=3 takes fewer passages .* than n_docs=5 reads: give retriever.overfetch=5",
    ):
        made.check_depth(5)
    made.check_depth(3)
    with pytest.raises(UserError, match="give retriever.overfetch from 1 to 7"):
        whole(question_encoder, index, trained, overfetch=8).check_depth(3)


def test_a_question_encoder_of_dpr_s_keeps_its_partner_up_to_date(tmp_path, question_encoder, index, trained):
    made = whole(question_encoder, index, trained)
    moved(trained)
    made.trained_parts()[0].save(tmp_path / "q")
    assert QuestionEncoder.from_pretrained(tmp_path / "q").partner == trained.fingerprint()

"""Scores, search, marginals and losses under mixed precision are those of float32; sizes as DPR's: scores around 70."""

import copy
import json

import numpy as np
import pytest
import torch
from conftest import (
    ANSWERS,
    QUESTIONS,
    bert_tokenizer,
    tiny_bart,
    tiny_dpr_config,
    tiny_passage_encoder,
    tiny_question_encoder,
    word_tokenizer,
)
from safetensors.torch import load_file
from torch.testing import assert_close
from transformers import BertModel

from rag import marginalize
from rag.classify import HeadClassifier
from rag.encoders.dpr import PassageEncoder, QuestionEncoder
from rag.errors import UserError
from rag.generators.seq2seq import Generator
from rag.model import ClosedBook, RagToken
from rag.retrievers.dense import DenseRetriever
from rag.retrievers.exact import ExactSearch
from rag.retrievers.null_document import NullBias, NullEmbedding, NullNetwork
from rag.training.dpr import bert_encoders, contrastive_loss, ranks_of_gold
from rag.training.summary import dtypes

HALVES = [torch.bfloat16, torch.float16]


@pytest.fixture(params=HALVES, ids=["bfloat16", "float16"])
def half(request):
    return torch.autocast("cpu", dtype=request.param)


class Vectors:
    """An index of vectors alone, whose lengths give inner products of around 70, 1 apart."""

    folder = "vectors"

    def __init__(self, vectors):
        self.all = vectors

    def __len__(self):
        return len(self.all)

    def vector_blocks(self, rows):
        for start in range(0, len(self.all), rows):
            yield start, self.all[start : start + rows]


def dpr_like(count: int, dim: int = 64) -> torch.Tensor:
    return torch.randn(count, dim) * 0.3 + 1.0


def test_retrieval_scores_and_their_gradients(question_encoder, index, half, monkeypatch):
    retriever = DenseRetriever(question_encoder, index, null_document=NullEmbedding(16, start=8.0))
    vectors = dpr_like(len(index), 16).numpy()
    monkeypatch.setattr(type(index), "vectors", lambda self, rows: vectors[rows])
    asked = []
    question_encoder.register_forward_hook(lambda *given: given[2].retain_grad() or asked.append(given[2]))
    with half:
        retrieved = retriever(retriever.prepare(QUESTIONS), 5)
    retrieved.doc_logprobs[:, 0].sum().backward()
    queries = asked[0].detach().double().requires_grad_()
    expected = torch.einsum("bd,bkd->bk", queries, torch.from_numpy(vectors[retrieved.rows[:, :5]]).double())
    null = queries @ retriever.null_document.vector.detach().double()
    expected = torch.cat([expected, null.unsqueeze(1)], dim=1)
    assert_close(retrieved.scores, expected.float(), rtol=1e-6, atol=1e-5)
    assert_close(retrieved.doc_logprobs, expected.log_softmax(dim=1).float(), rtol=1e-5, atol=1e-5)
    expected.log_softmax(dim=1)[:, 0].sum().backward()
    rounded = asked[0].grad.dtype  # of q(x), as autocast leaves it
    assert_close(
        asked[0].grad, queries.grad.to(rounded), rtol=2e-3 if rounded == torch.float32 else 0.02, atol=1e-5
    )


@pytest.mark.parametrize("make", [NullEmbedding, NullNetwork, lambda dim, start: NullBias(start)])
def test_null_documents(make, half):
    null, queries = make(64, start=7.3), dpr_like(5)
    if isinstance(null, NullNetwork):
        torch.nn.init.normal_(null.output.weight)
    expected = copy.deepcopy(null).double()(queries.double()).float()
    with half:
        assert_close(null(queries), expected, rtol=1e-5, atol=1e-5)
    assert null.bfloat16()(queries).dtype == torch.float32  # a trainer of bf16-true


def test_exact_search_finds_the_same_passages(half):
    queries, vectors = dpr_like(16), dpr_like(3000)
    search = ExactSearch(Vectors(vectors.numpy()), "cpu")
    expected = (queries.double() @ vectors.double().T).argsort(dim=1, descending=True)[:, :10]
    with half:
        np.testing.assert_array_equal(search.search(queries, 10), expected.numpy())


def test_dprs_loss_and_ranks(half):
    questions, passages = dpr_like(8).requires_grad_(), dpr_like(40)
    positive = torch.arange(8)
    allowed = torch.ones(8, 40, dtype=torch.bool)
    wide = questions.detach().double().requires_grad_()
    expected = torch.nn.functional.cross_entropy(wide @ passages.double().T, positive)
    expected.backward()
    with half:
        losses, _ = contrastive_loss(questions, passages, positive, allowed)
        loss = losses.mean()
        ranks = ranks_of_gold(questions, passages, positive, torch.full((8, 1), -1))
    loss.backward()
    assert_close(loss, expected.float(), rtol=1e-5, atol=0)
    assert_close(questions.grad, wide.grad.float(), rtol=1e-3, atol=1e-5)
    scores = wide.detach() @ passages.double().T
    assert ranks.tolist() == (scores > scores.gather(1, positive[:, None])).sum(dim=1).tolist()


def test_marginals_and_posteriors(half):
    priors = marginalize.doc_logprobs(torch.randn(3, 5) * 9)
    tokens, means, mask = -torch.rand(3, 5, 7) * 9, -torch.rand(3, 5, 7), torch.rand(3, 7) < 0.8

    def everything():
        yield marginalize.doc_logprobs(priors)
        yield marginalize.sequence_logprob(priors, tokens, mask)
        yield marginalize.token_logprob(priors, tokens, mask)
        yield marginalize.sequence_posterior(priors, tokens, mask)
        yield marginalize.token_posterior(priors, tokens)
        yield marginalize.smoothing_loss(priors, means, mask)
        yield marginalize.mixed_vocabulary(priors, tokens.unsqueeze(1), tokens.logsumexp(-1).unsqueeze(1))

    expected = list(everything())
    with half:
        for computed, plain in zip(everything(), expected, strict=True):
            assert computed.dtype == torch.float32
            assert_close(computed, plain, rtol=0, atol=0)


def test_the_head_of_a_classifier(bart, half, monkeypatch):
    classifier = HeadClassifier(ClosedBook(bart), ["yes", "no", "maybe"])
    states = []
    classifier.head.register_forward_pre_hook(lambda _, given: states.append(given[0]))
    with half, torch.no_grad():
        contexts = classifier.read(classifier.prepare(QUESTIONS))
        class_logprobs = classifier.class_logprobs(contexts)
    expected = classifier.head.double()(states[0].double()).log_softmax(dim=-1).unsqueeze(1)
    assert_close(class_logprobs.double(), expected, rtol=1e-5, atol=1e-6)


# -- weights ----------------------------------------------------------------------------------


def halve(folder) -> None:
    """As facebook/bart-large lies on the hub: half tensors in pytorch_model.bin, no type in the config."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save({name: weight.half() for name, weight in weights.items()}, folder / "pytorch_model.bin")
    config = json.loads((folder / "config.json").read_text())
    for part in (config, config.get("question_encoder", {}), config.get("generator", {})):
        part.pop("dtype", None)
    (folder / "config.json").write_text(json.dumps(config))


def saved_parts(folder) -> None:
    words, uncased = word_tokenizer(), bert_tokenizer()
    Generator(tiny_bart(len(words)), words).save_pretrained(folder / "generator")
    QuestionEncoder(tiny_question_encoder(len(uncased)), uncased).save_pretrained(folder / "questions")
    PassageEncoder(tiny_passage_encoder(len(uncased)), uncased).save_pretrained(folder / "passages")
    bert = BertModel(BertModel.config_class(**tiny_dpr_config(len(uncased)).to_dict()))
    bert.save_pretrained(folder / "bert")
    uncased.save_pretrained(folder / "bert")
    for name in ("generator", "questions", "passages", "bert"):
        halve(folder / name)


def test_half_weights_are_trained_in_float32(tmp_path, index):
    saved_parts(tmp_path)
    model = RagToken.from_parts(tmp_path / "questions", tmp_path / "generator", index)
    model.save_pretrained(tmp_path / "whole")
    halve(tmp_path / "whole")
    loaded = {
        "from_parts": model,
        "checkpoint": RagToken.from_pretrained(tmp_path / "whole", index),
        "passages": PassageEncoder.from_pretrained(tmp_path / "passages"),
        "bert": torch.nn.ModuleList(bert_encoders(tmp_path / "bert")),
    }
    for name, part in loaded.items():
        kinds = {each.dtype for each in [*part.parameters(), *part.buffers()] if each.is_floating_point()}
        assert kinds == {torch.float32}, name
        assert dtypes(part) == "float32"
    asked = Generator.from_pretrained(tmp_path / "generator", dtype="bfloat16")
    assert dtypes(asked) == "bfloat16"
    with pytest.raises(UserError, match="dtype=int64 does not exist for weights"):
        QuestionEncoder.from_pretrained(tmp_path / "questions", dtype="int64")


def test_a_step_of_adamw_on_half_weights(tmp_path, index):
    """The step that gave NaN on half weights."""
    saved_parts(tmp_path)
    model = RagToken.from_parts(tmp_path / "questions", tmp_path / "generator", index, n_docs=2).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    (-model(model.prepare(QUESTIONS, ANSWERS)).logprob.mean()).backward()
    optimizer.step()
    assert all(weight.isfinite().all() for weight in model.parameters())

"""Appendix F: the empty passage's score, its context, and what it learns."""

import pytest
import torch
from conftest import ANSWERS, QUESTIONS
from torch.testing import assert_close

from rag import marginalize
from rag.errors import UserError
from rag.model import RagSequence, RagToken
from rag.retrievers.dense import DenseRetriever
from rag.retrievers.null_document import NullBias, NullDocument, NullEmbedding, NullNetwork

NULLS = {
    "embedding": lambda: NullEmbedding(16, start=1.0),
    "bias": lambda: NullBias(start=-2.0),
    "network": lambda: NullNetwork(16, hidden=4, start=1.5),
}


@pytest.fixture(params=list(NULLS))
def null(request) -> NullDocument:
    return NULLS[request.param]()


def test_scores_by_hand():
    queries = torch.tensor([[1.0, 2.0], [0.0, -1.0]])
    embedding, bias, network = NullEmbedding(2), NullBias(0.5), NullNetwork(2, hidden=1, start=3.0)
    with torch.no_grad():
        embedding.vector.copy_(torch.tensor([3.0, 4.0]))
        assert_close(embedding(queries), torch.tensor([11.0, -4.0]))
        assert_close(bias(queries), torch.tensor([0.5, 0.5]))
        assert_close(network(queries), torch.tensor([3.0, 3.0]))  # as it starts
        network.hidden.weight.fill_(1.0)
        network.hidden.bias.zero_()
        network.output.weight.fill_(2.0)
        expected = 3 + 2 * torch.tensor([3.0, -1.0]).tanh()
        assert_close(network(queries), expected)


@pytest.mark.parametrize("model_class", [RagSequence, RagToken])
def test_an_empty_passage_stands_beside_the_k(model_class, retriever, bart, null):
    """The likelihood is that of K + 1 passages, the last of which is the question alone."""
    plain = model_class(retriever, bart, n_docs=3)
    batch = plain.prepare(QUESTIONS, ANSWERS)
    without = plain(batch)
    model = model_class(
        DenseRetriever(retriever.question_encoder, retriever.index, null_document=null), bart, 3
    )
    likelihood = model(batch)
    assert likelihood.retrieved.rows[:, :3].tolist() == without.retrieved.rows.tolist()
    assert (likelihood.retrieved.rows[:, 3] == -1).all()
    queries = retriever.question_encoder(**batch.questions.tokens)
    assert_close(likelihood.retrieved.scores[:, 3], null(queries))

    tokenizer = bart.tokenizer
    for row, question in enumerate(QUESTIONS):
        labels = batch.labels[row : row + 1][:, batch.label_mask[row]]
        inputs = torch.cat([torch.tensor([[bart.start_token]]), labels[:, :-1]], dim=1)
        context = tokenizer(" // " + question, return_tensors="pt")
        logprobs = bart.model(**context, decoder_input_ids=inputs).logits.log_softmax(dim=-1)
        alone = logprobs.gather(2, labels.unsqueeze(2)).squeeze(2)[0]
        assert_close(likelihood.token_logprobs[row, 3, : labels.shape[1]], alone)
    scores = torch.cat([without.retrieved.scores, null(queries).unsqueeze(1)], dim=1)
    expected = model.marginal(marginalize.doc_logprobs(scores), likelihood.token_logprobs, batch.label_mask)
    assert_close(likelihood.logprob, expected)


@pytest.mark.parametrize("trainable", [True, False])
def test_it_learns_by_posterior_minus_prior_also_beside_a_frozen_encoder(trainable, retriever, bart, null):
    """d log p(y|x) / d score = p(∅|x,y) − p(∅|x)."""
    frozen = DenseRetriever(retriever.question_encoder, retriever.index, trainable, null)
    model = RagSequence(frozen, bart, n_docs=3)
    seen = []
    null.register_forward_hook(lambda _, __, scores: seen.append(scores))
    batch = model.prepare(QUESTIONS, ANSWERS)
    likelihood = model(batch)
    seen[0].retain_grad()
    likelihood.logprob.sum().backward()
    prior = likelihood.doc_logprobs.detach()
    posterior = marginalize.sequence_posterior(prior, likelihood.token_logprobs.detach(), batch.label_mask)
    assert_close(seen[0].grad, (posterior - prior.exp())[:, 3], rtol=1e-4, atol=1e-5)
    assert any(weight.grad.any() for weight in null.parameters())
    reached = any(w.grad is not None and w.grad.any() for w in retriever.question_encoder.parameters())
    assert reached == trainable


def test_a_null_document_is_no_miss(retriever, bart, null, caplog):
    model = RagToken(DenseRetriever(retriever.question_encoder, retriever.index, null_document=null), bart, 2)
    model.read(model.prepare(QUESTIONS))
    assert not caplog.records


def test_save_and_load(tmp_path, null):
    queries = torch.randn(3, 16)
    with torch.no_grad():
        for weight in null.parameters():
            weight += torch.randn_like(weight)
    null.save_pretrained(tmp_path / "null.safetensors")
    loaded = type(null).from_pretrained(tmp_path / "null.safetensors")
    assert torch.equal(loaded(queries), null(queries))


def test_another_null_documents_file_is_refused(tmp_path):
    NullBias().save_pretrained(tmp_path / "null.safetensors")
    with pytest.raises(UserError, match="null.safetensors holds no NullNetwork"):
        NullNetwork.from_pretrained(tmp_path / "null.safetensors")
    with pytest.raises(UserError, match="nowhere holds no NullBias"):
        NullBias.from_pretrained(tmp_path / "nowhere")


def test_transformers_format_has_no_place_for_it(tmp_path, retriever, bart, null):
    model = RagToken(DenseRetriever(retriever.question_encoder, retriever.index, null_document=null), bart)
    with pytest.raises(UserError, match="null_document.* does not fit this format"):
        model.save_pretrained(tmp_path / "model")

"""oneDNN's products in place of MKL's: the same values and gradients, and nothing of a model changes but its speed."""

import copy

import pytest
import torch
from conftest import tiny_bart, word_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close

from rag import products
from rag.generators.output_layer import PlainOutputLayer, output_layer
from rag.generators.seq2seq import Generator
from rag.model import RagToken
from rag.products import QuickLinear, _dense, linear, quicken

pytestmark = pytest.mark.skipif(
    not hasattr(torch.ops.mkldnn, "_linear_pointwise") or not torch.backends.mkldnn.is_available(),
    reason="this torch has no oneDNN",
)


@pytest.fixture(autouse=True)
def _whatever_the_processor(monkeypatch):
    monkeypatch.setattr(products, "prefers_onednn", lambda: True)
    monkeypatch.setattr(products, "LEAST_WORK", 0)


@settings(max_examples=60)
@given(
    st.sampled_from([(), (1,), (7,), (3, 5), (2, 3, 4)]),
    st.integers(1, 40),
    st.integers(1, 40),
    st.booleans(),
    st.integers(0, 7),
    st.integers(0, 99),
)
def test_values_and_gradients_are_those_of_torch(rows, inputs, outputs, bias, learns, seed):
    torch.manual_seed(seed)
    given = [torch.randn(*rows, inputs), torch.randn(outputs, inputs), torch.randn(outputs) if bias else None]
    found = {}
    for name, function in (("torch", nn.functional.linear), ("ours", linear)):
        parts = [
            None if each is None else each.clone().requires_grad_(bool(learns >> at & 1))
            for at, each in enumerate(given)
        ]
        y = function(*parts)
        if y.requires_grad:
            (y * torch.arange(y.numel()).view(y.shape)).sum().backward()
        found[name] = [y.detach(), *(each.grad for each in parts if each is not None)]
    assert len(found["torch"]) == len(found["ours"])
    for theirs, ours in zip(*found.values(), strict=True):
        assert (theirs is None) == (ours is None)
        if theirs is not None:
            assert_close(ours, theirs, rtol=1e-4, atol=1e-4 * float(theirs.abs().max()) + 1e-6)


def test_views_are_read_as_they_are():
    x, weight = torch.randn(6, 9).t()[1:8], torch.randn(12, 5)[::2].t()[:, :6]
    assert_close(linear(x, weight), x @ weight.t())
    assert_close(linear(x[:0], weight), x[:0] @ weight.t())


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_what_is_traced_is_torchs_own():
    """For ONNX and OpenVINO, which know nothing of oneDNN's products."""
    model = quicken(nn.Sequential(nn.Linear(4, 5), nn.ReLU()))
    traced = torch.jit.trace(model, torch.randn(3, 4))
    assert "aten::linear" in str(traced.inlined_graph) and "mkldnn" not in str(traced.inlined_graph)
    x = torch.randn(2, 4)
    assert_close(traced(x), model(x))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes_and_autocast_are_torchs_own(dtype):
    x, weight = torch.randn(3, 4, dtype=dtype), torch.randn(5, 4, dtype=dtype)
    assert torch.equal(linear(x, weight), nn.functional.linear(x, weight))
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(x.float(), weight.float()).dtype == torch.bfloat16


def test_quickened_layers_stay_what_they_are():
    shared = nn.Linear(4, 4)
    model = nn.Sequential(shared, nn.LayerNorm(4), shared)
    parameters, held = list(model.parameters()), {k: v.clone() for k, v in model.state_dict().items()}
    assert quicken(quicken(model)) is model
    assert type(model[0]) is QuickLinear and model[0] is model[2] and isinstance(model[0], nn.Linear)
    assert all(one is other for one, other in zip(parameters, model.parameters(), strict=True))
    again = copy.deepcopy(model)
    again.load_state_dict(held)
    x = torch.randn(3, 4)
    assert torch.equal(again(x), model(x))


def test_a_model_says_the_same_and_learns_the_same(retriever, monkeypatch):
    """log p(y|x), its gradient, and the output layer that computes by hand, against MKL's."""
    tokenizer = word_tokenizer()
    found = []
    for ours in (False, True):
        monkeypatch.setattr(products, "prefers_onednn", lambda ours=ours: ours)
        torch.manual_seed(0)
        generator = Generator(tiny_bart(len(tokenizer)), tokenizer)
        model = RagToken(retriever, generator, n_docs=3).eval()
        layers = {type(each) for each in generator.modules() if isinstance(each, nn.Linear)}
        assert layers == ({QuickLinear} if ours else {nn.Linear})
        assert isinstance(output_layer(generator.model), PlainOutputLayer)
        logprob = model(
            model.prepare(["what is the capital of France?"] * 3, ["Paris", "Rome", "a river"])
        ).logprob
        logprob.sum().backward()
        found.append([logprob.detach(), *(p.grad for p in generator.parameters() if p.grad is not None)])
    for theirs, mine in zip(*found, strict=True):
        assert_close(mine, theirs, rtol=1e-4, atol=1e-6)


def test_states_of_one_position_are_multiplied_without_gaps():
    """oneDNN takes a hundred times as long for two transposed factors with gaps between their rows."""
    states = torch.randn(8, 5, 16)
    whole, first = states.flatten(0, 1), states[:, 0]
    assert _dense(whole) is whole and _dense(transposed := whole.t()) is transposed
    for gapped in (first, first.t(), states[:, 1:]):
        dense = _dense(gapped)
        assert dense.is_contiguous() and torch.equal(dense, gapped)

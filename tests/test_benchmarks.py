"""The benchmarks at sizes that take seconds: they run, both sides agree, and the counts of FLOP are right."""

from pathlib import Path

import pytest
import torch

from benchmarks import causal, compare, flop, profile, world
from benchmarks.machine import count_flop
from rag.model import RagToken


@pytest.fixture
def side(tmp_path: Path) -> compare.Side:
    return compare.Side(world.SIZES["tiny"], docs=2, questions=2, passages=30, folder=tmp_path)


@pytest.mark.slow
def test_both_sides_agree_on_everything(side):
    for what in compare.WHAT:
        seconds, equal = compare.measure_time(compare.task(what, side), repeats=1)
        assert equal and min(seconds) > 0, what


@pytest.mark.slow
def test_both_sides_of_a_causal_model_agree_on_everything():
    side = causal.Side("tiny", docs=2, questions=2)
    for what in causal.WHAT:
        seconds, equal = compare.measure_time(causal.task(what, side), repeats=1)
        assert equal and min(seconds) > 0, what


def test_a_difference_is_seen(side):
    training = compare.task("token_train", side)
    losses, gradients = training.result(training.ours()())
    assert training.equal((losses, gradients), (losses, gradients))
    assert not training.equal((losses, gradients), (losses * 1.001, gradients))
    assert not training.equal(
        (losses, gradients), (losses, [g if g is None else g * 1.001 for g in gradients])
    )


def test_peak_memory_is_that_of_the_call():
    bytes_held = 200 << 20
    assert 0.9 < compare.peak_memory(lambda: torch.ones(bytes_held // 4).sum()) / bytes_held < 1.3


def test_flop_are_those_that_are_counted(side):
    size = world.SIZES["tiny"]
    model = side.model(RagToken)
    batch = model.prepare(side.questions, side.answers)
    retrieved = model.retriever(batch.questions, 2)
    with torch.no_grad():
        contexts = model.read_retrieved(batch, retrieved)
        lengths = torch.full((4,), contexts.mask.shape[1])  # every row is as long as the longest
        targets = torch.full((2,), batch.labels.shape[1])

        def forward() -> None:
            states = side.generator.encode(torch.full(contexts.mask.shape, 5), torch.ones_like(contexts.mask))
            side.generator.token_logprobs(states, contexts.mask, batch.labels.repeat_interleave(2, dim=0))

        counted = count_flop(forward)
    assert flop.generator_flop(size, lengths, targets, 2) == pytest.approx(counted, rel=0.01)


@pytest.mark.slow
def test_breakdown(side):
    operators = profile.breakdown("token_train", compare.task("token_train", side).ours(), peak=1e11)
    assert 0 < operators.in_products + operators.in_attention < 1
    assert operators.flop > 0 and operators.largest[0][1] >= operators.largest[-1][1]

"""Part a: the device against the CPU, on the same weights and inputs.

Float32 without TF32 has to agree to 1e-4. bfloat16, whose numbers have three significant digits, has the tolerances
below, against float32 on the CPU. p(z|x) and exact search are float32 under autocast too, and have float32's tolerance
against float64.

The checks are functions of the device, so that they run on a CPU too, there against itself.
"""

import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks import world
from benchmarks.gpu.setting import Setting
from benchmarks.sides import Side
from rag.decoding.generation import generate
from rag.decoding.settings import Decoding
from rag.model import Batch, RagSequence, RagToken
from rag.retrievers.exact import ExactSearch
from rag.retrievers.null_document import NullEmbedding, NullNetwork
from rag.runs import PROJECT

FLOAT32 = 1e-4  # |ours − CPU's| / |CPU's|
BFLOAT16_LOSS = 5e-3
BFLOAT16_GRADIENT = 0.1
NEW_TOKENS = 12
SECONDS_FOR_TESTS = 40
WITH_A_GPU = ("tests/test_gpu_check.py", "tests/test_exact.py")  # others import what need not be there


@dataclass(frozen=True)
class Outcome:
    """How far apart two results are, and may be. NaN is no agreement."""

    what: str
    error: float
    tolerance: float

    @property
    def agrees(self) -> bool:
        return self.error <= self.tolerance


class Both:
    """The same models, passages and questions on the CPU and on a device."""

    def __init__(self, device: str, size: str, folder: Path):
        docs, questions, passages = (3, 3, 40) if size == "tiny" else (5, 4, 200)
        made = world.SIZES[size], docs, questions, passages
        self.docs, self.device = docs, device
        self.on_cpu = Side(*made, folder / "cpu", "cpu", with_faiss=False)
        self.on_device = Side(*made, folder / "device", device, with_faiss=False)
        self.on_device.generator.load_state_dict(self.on_cpu.generator.state_dict())
        self.on_device.retriever.load_state_dict(self.on_cpu.retriever.state_dict())

    def batch(self, side: Side, kind: type) -> tuple[Any, Batch]:
        model = side.model(kind)
        return model, model.prepare(side.questions, side.answers).to(side.device)

    def losses(self, side: Side, kind: type, half: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """−log p(y|x) of each question, the smoothing term, and the gradient of both as one vector."""
        model, batch = self.batch(side, kind)
        model.zero_grad()
        with torch.autocast(side.device, torch.bfloat16, enabled=half):
            likelihood = model(batch, want_smoothing=True)
        assert likelihood.smoothing is not None
        (0.9 * -likelihood.logprob + 0.1 * likelihood.smoothing).sum().backward()
        gradients = [torch.zeros_like(w) if w.grad is None else w.grad for w in side.weights]
        gradient = torch.cat([each.flatten().float().cpu() for each in gradients])
        return -likelihood.logprob.detach().cpu(), likelihood.smoothing.detach().cpu(), gradient


@contextmanager
def float32_products() -> Iterator[None]:
    """Matrix products of float32 without TF32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def relative(ours: Tensor, theirs: Tensor) -> float:
    """|ours − theirs| / |theirs| of two tensors as a whole."""
    ours, theirs = ours.detach().double().cpu(), theirs.detach().double().cpu()
    return float((ours - theirs).norm() / theirs.norm())


def largest(ours: Tensor, theirs: Tensor) -> float:
    """The largest |ours − theirs| / |theirs| of any number in two tensors."""
    ours, theirs = ours.detach().double().cpu(), theirs.detach().double().cpu()
    return float(((ours - theirs).abs() / theirs.abs()).max())


# -- float32 -------------------------------------------------------------------------------------


def losses_and_gradients(both: Both) -> list[Outcome]:
    checks = []
    for name, kind in (("RAG-Token", RagToken), ("RAG-Sequence", RagSequence)):
        ours, theirs = both.losses(both.on_device, kind), both.losses(both.on_cpu, kind)
        checks += [
            Outcome(f"{name}, loss", largest(ours[0], theirs[0]), FLOAT32),
            Outcome(f"{name}, label smoothing", largest(ours[1], theirs[1]), FLOAT32),
            Outcome(f"{name}, gradient", relative(ours[2], theirs[2]), FLOAT32),
        ]
    return checks


SEARCHES = (
    ("RAG-Token greedy", RagToken, Decoding(NEW_TOKENS)),
    ("RAG-Token beam 4", RagToken, Decoding(NEW_TOKENS, num_beams=4)),
    ("Thorough greedy", RagSequence, Decoding(NEW_TOKENS)),
    ("Thorough beam 4", RagSequence, Decoding(NEW_TOKENS, num_beams=4)),
    ("Fast beam 4", RagSequence, Decoding(NEW_TOKENS, num_beams=4, thorough=False)),
)


def answers(both: Both) -> list[Outcome]:
    """The same tokens, worth the same, by the same passages."""
    checks = []
    for name, kind, decoding in SEARCHES:
        sides = []
        for side in (both.on_device, both.on_cpu):
            model, batch = both.batch(side, kind)
            with torch.no_grad():
                sides.append([of_question[0] for of_question in generate(model, model.read(batch), decoding)])
        pairs = list(zip(*sides, strict=True))
        other = sum(ours.tokens != theirs.tokens for ours, theirs in pairs)
        worth = [torch.tensor([each.logprob for each in side]) for side in sides]
        posteriors = [torch.stack([each.posterior for each in side]) for side in sides]
        checks += [
            Outcome(f"{name}, answers that differ", other / len(pairs), 0),
            Outcome(f"{name}, log p(y|x)", largest(*worth), FLOAT32),
            Outcome(f"{name}, p(z|x,y)", relative(*posteriors), FLOAT32),
        ]
    return checks


# -- bfloat16 ------------------------------------------------------------------------------------


def bfloat16_training(both: Both) -> list[Outcome]:
    """Losses and gradients under autocast, against float32 on the CPU."""
    checks = []
    for name, kind in (("RAG-Token", RagToken), ("RAG-Sequence", RagSequence)):
        ours, theirs = both.losses(both.on_device, kind, half=True), both.losses(both.on_cpu, kind)
        checks += [
            Outcome(f"{name} in bfloat16, loss", largest(ours[0], theirs[0]), BFLOAT16_LOSS),
            Outcome(f"{name} in bfloat16, gradient", relative(ours[2], theirs[2]), BFLOAT16_GRADIENT),
        ]
    return checks


def bfloat16_answers(both: Both) -> list[Outcome]:
    """What an answer is said to be worth under autocast, against float32 on the CPU for the same answer."""
    checks = []
    for name, kind, decoding in SEARCHES[:4]:
        model, batch = both.batch(both.on_device, kind)
        with torch.no_grad(), torch.autocast(both.device, torch.bfloat16):
            best = [of_question[0] for of_question in generate(model, model.read(batch), decoding)]
        reference, batch = both.batch(both.on_cpu, kind)
        longest = max(len(each.tokens) for each in best)
        pad = reference.generator.pad_token
        rows = [[*each.tokens, *[pad] * (longest - len(each.tokens))] for each in best]
        lengths = torch.tensor([len(each.tokens) for each in best])
        mask = torch.arange(longest) < lengths.unsqueeze(1)
        with torch.no_grad():
            worth = reference(replace(batch, labels=torch.tensor(rows), label_mask=mask)).logprob
        said = torch.tensor([each.logprob for each in best])
        checks.append(Outcome(f"{name} in bfloat16, log p(y|x)", largest(said, worth), BFLOAT16_LOSS))
    return checks


# -- float32 under autocast ----------------------------------------------------------------------


def retrieval_under_autocast(both: Both) -> list[Outcome]:
    """p(z|x), with and without a null document, has the accuracy of float32 for the q(x) that autocast makes."""
    side = both.on_device
    questions = side.retriever.prepare(side.questions).to(both.device)
    nulls = {"": None, ", null embedding": NullEmbedding(side.retriever.question_encoder.dim, start=3.0)}
    network = NullNetwork(side.retriever.question_encoder.dim)
    torch.nn.init.normal_(network.output.weight)
    nulls |= {", null network": network}
    checks = []
    for name, null in nulls.items():
        side.retriever.null_document = None if null is None else null.to(both.device)
        with torch.no_grad(), torch.autocast(both.device, torch.bfloat16):
            queries = side.retriever.question_encoder(**questions.tokens)
            retrieved = side.retriever(questions, both.docs)
        side.retriever.null_document = None
        exact = queries.double().cpu()
        rows = retrieved.rows[:, : both.docs]
        scores = torch.einsum("bd,bkd->bk", exact, torch.from_numpy(side.index.vectors(rows)).double())
        if null is not None:
            with torch.no_grad():
                null_score = null.cpu().double()(exact).unsqueeze(1)
            scores = torch.cat([scores, null_score], dim=1)
        float32 = retrieved.scores.dtype == retrieved.doc_logprobs.dtype == torch.float32
        expected = scores.log_softmax(dim=1)
        error = relative(retrieved.doc_logprobs, expected) if float32 else float("nan")
        checks.append(Outcome(f"log p(z|x) under autocast{name}", error, FLOAT32))
    return checks


def search_under_autocast(both: Both) -> list[Outcome]:
    """Exact search finds the rows that float64 finds, in their order, from float32 and from bfloat16 vectors."""
    side = both.on_device
    everything = side.index.vectors(np.arange(len(side.index))).astype(np.float64)
    draw = np.random.default_rng(world.SEED)
    queries = draw.standard_normal((16, side.index.dim), np.float32)
    expected = np.argsort(-(queries @ everything.T), axis=1)[:, :10]
    checks = []
    for dtype in (torch.float32, torch.bfloat16):
        search = ExactSearch(side.index, both.device, dtype)
        for half in (False, True):
            with torch.autocast(both.device, torch.bfloat16, enabled=half):
                rows = search.search(torch.from_numpy(queries).to(both.device), 10)
            stored = str(dtype).removeprefix("torch.")
            where = f"exact search, {stored} vectors{', under autocast' if half else ''}"
            checks.append(Outcome(f"{where}: places that differ", float((rows != expected).mean()), 0))
    return checks


CHECKS: tuple[Callable[[Both], list[Outcome]], ...] = (
    losses_and_gradients,
    answers,
    bfloat16_training,
    bfloat16_answers,
    retrieval_under_autocast,
    search_under_autocast,
)


def marked_tests(setting: Setting) -> bool:
    """`pytest -m gpu`, the same checks among them, where what tests need is installed and time is left."""
    what = "pytest -m gpu"
    lacking = [name for name in ("pytest", "hypothesis", "beartype", "faiss") if find_spec(name) is None]
    if setting.dry or lacking or setting.left < SECONDS_FOR_TESTS:
        reason = "on a GPU alone" if setting.dry else f"needs {lacking[0]}" if lacking else "no time left"
        setting.skip(what, reason)
        return True
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-p", "no:cacheprovider", *WITH_A_GPU]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    print(done.stdout[-4_000:], done.stderr[-1_000:])
    good = done.returncode == 0
    setting.tell(what, {"exit_code": done.returncode, "error": 0.0}, aim="0", reached=good, must=True)
    return good


def run(setting: Setting) -> int:
    """All checks; 1 where something does not agree."""
    wrong = 0
    with tempfile.TemporaryDirectory() as folder, float32_products():
        both = Both(setting.device, "tiny" if setting.dry else "small", Path(folder))
        for check in CHECKS:
            for outcome in check(both):
                wrong += not outcome.agrees
                setting.tell(
                    outcome.what,
                    {"error": outcome.error},
                    aim=f"≤ {outcome.tolerance:g}",
                    reached=outcome.agrees,
                    must=True,
                )
    wrong += not marked_tests(setting)
    return int(wrong > 0)

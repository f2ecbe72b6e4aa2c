"""Part b: training steps of RAG-Token, BART-large and a BERT-base question encoder with random weights, beside
transformers' in the same process, on the same weights, passages and answers.

A step is forward and backward under bfloat16 autocast and AdamW's update of float32 weights. Ours encodes the
questions, searches 2,048 passages exactly and assembles the contexts within the step; the reference is handed its
contexts, padded as its own retriever pads them. Each gets the batch that gives it most examples a second, of those that
fit. Model FLOP utilisation counts the products that real tokens need (benchmarks/flop.py), against the card's data
sheet. Memory is the most that one step holds above the weights and AdamW's moments, gradients included, at the
largest batch that fits both. At the end the same of ours with its layers compiled (compile=true).
"""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

from benchmarks import world
from benchmarks.flop import encoder_flop, generator_flop
from benchmarks.gpu.setting import Setting, release
from benchmarks.machine import timed
from benchmarks.sides import Side, their_loss
from rag.model import RagToken
from rag.training.compiling import compile_layers

LEARNING_RATE = 1e-6
BATCHES = (2, 8, 32, 48, 64, 96, 128, 192, 256)
SLOWER = 0.9  # once a batch is so much slower than the best, larger ones are not tried
SAME_LOSS = 1e-2  # in bfloat16, whose numbers have three significant digits
MFU_AIM, SPEED_AIM, MEMORY_AIM = 0.4, 2.0, 3.0
COMPILED_SECONDS = 60.0  # kept for the compiled layers, half of them for the compiler

Step = Callable[[], torch.Tensor]


class Steps:
    """Training steps of both sides for any number of questions."""

    def __init__(self, side: Side):
        self.side = side
        self.model = side.model(RagToken).train()
        self.their_model = side.their_model(transformers.RagTokenForGeneration).train()
        self.optimizer = torch.optim.AdamW(side.weights, lr=LEARNING_RATE, fused=True)

    def difference(self, questions: int) -> float:
        """|our loss − theirs| / |theirs| of the same questions, both in bfloat16."""
        side = self.side
        batch = self.model.prepare(side.questions[:questions], side.answers[:questions]).to(side.device)
        contexts, labels = (
            side.their_contexts(batch.questions.text),
            side.their_labels(side.answers[:questions]),
        )
        with torch.no_grad(), torch.autocast(side.device, torch.bfloat16):
            ours = -self.model(batch).logprob.mean()
            theirs = their_loss(self.their_model, contexts, labels).mean()
        return float((ours - theirs).abs() / theirs.abs())

    def _step(self, loss: Callable[[], torch.Tensor]) -> Step:
        def step() -> torch.Tensor:
            with torch.autocast(self.side.device, torch.bfloat16):
                value = loss()
            value.backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            return value.detach()

        return step

    def ours(self, questions: int) -> Step:
        side = self.side
        batch = self.model.prepare(side.questions[:questions], side.answers[:questions]).to(side.device)
        return self._step(lambda: -self.model(batch).logprob.mean())

    def theirs(self, questions: int) -> Step:
        contexts = self.side.their_contexts(self.side.questions[:questions])
        labels = self.side.their_labels(self.side.answers[:questions])
        return self._step(lambda: their_loss(self.their_model, contexts, labels).mean())

    def flop(self, questions: int) -> float:
        """FLOP of a step's products over real tokens."""
        side = self.side
        contexts = side.their_contexts(side.questions[:questions])
        _, mask = side.generator.tokenize_targets(side.answers[:questions])
        once = generator_flop(side.size, contexts.mask.sum(dim=1).cpu(), mask.sum(dim=1), side.docs)
        return 3 * (once + encoder_flop(side.size, contexts.questions["attention_mask"].sum(dim=1).cpu()))

    def clear(self) -> None:
        self.optimizer.zero_grad()
        release()


def tried(
    steps: Steps, make: Callable[[int], Step], until: Callable[[], bool], most: int, least: int = 1
) -> dict[int, float]:
    """Seconds a step with each number of questions: growing batches until one does not fit, or is much slower."""
    seconds: dict[int, float] = {}
    for questions in (size for size in BATCHES if size >= least):
        if questions > most or until():
            break
        fits = False
        try:
            step = make(questions)
            step()  # kernels are chosen, AdamW's moments are made
            seconds[questions] = min(timed(step, steps.side.device) for _ in range(2))
            fits = True
        except torch.OutOfMemoryError:
            pass
        steps.clear()  # not in the handler, whose traceback holds the tensors
        if not fits:
            break
        rates = {size: size / taken for size, taken in seconds.items()}
        if rates[questions] < SLOWER * max(rates.values()):
            break
    return seconds


def peak(steps: Steps, step: Step) -> tuple[int, int] | None:
    """The most bytes that the card held during a step, and how many of them the step took; None on a CPU."""
    if steps.side.device != "cuda":
        return None
    steps.clear()
    held = torch.cuda.memory_allocated()
    step()
    torch.cuda.synchronize()
    most = torch.cuda.max_memory_allocated()
    return most, most - held


def run(setting: Setting) -> int:
    sheet, measured = setting.peaks()
    card = {"card_tflops": sheet / 1e12, "measured_tflops": measured / 1e12}
    setting.tell("bfloat16 matrix products", card)
    shapes = (2,) if setting.dry else (5, 10)
    most, passages = (4, 30) if setting.dry else (BATCHES[-1], 2_048)
    size = world.SIZES["tiny" if setting.dry else "large"]
    with tempfile.TemporaryDirectory() as folder:
        side = Side(size, shapes[0], most, passages, Path(folder), setting.device, with_faiss=False)
        best: dict[
            int, tuple[float, int]
        ] = {}  # of each K, the examples a second of transformers' and our batch
        for number, docs in enumerate(shapes):
            budget = (setting.left - COMPILED_SECONDS * (not setting.dry)) / (len(shapes) - number)
            found = beside(setting, side.with_docs(docs), sheet, measured, budget)
            release()
            if found is not None:
                best[docs] = found
        if not setting.dry and best:  # on a CPU it would need another compiler, and minutes
            compiled(setting, side, best, sheet, measured)
    return 0


def compiled(
    setting: Setting, side: Side, best: dict[int, tuple[float, int]], sheet: float, measured: float
) -> None:
    """Ours again with its layers compiled, from the batch on that was best without."""
    for docs, (of_theirs, least) in best.items():
        steps = Steps(side.with_docs(docs))
        compile_layers(steps.model)
        seconds = tried(steps, steps.ours, lambda: setting.left < 10, len(side.questions), least)
        if not seconds:
            setting.skip(f"training, K = {docs}, compiled", "no time was left")
            return
        questions = max(seconds, key=lambda b: b / seconds[b])
        rate = questions / seconds[questions]
        flop = steps.flop(questions) / seconds[questions]
        bytes_held = peak(steps, steps.ours(questions))
        metrics = {
            "examples_per_second": rate,
            "mfu": flop / sheet,
            "of_measured_products": flop / measured,
            "peak_gb": bytes_held and bytes_held[0] / 1e9,
        }
        where = {"K": docs, "B": questions, "side": "ours, compiled", "tried_up_to": max(seconds)}
        setting.tell("training", metrics, where, f"MFU ≥ {MFU_AIM}", flop / sheet >= MFU_AIM)
        ratio = rate / of_theirs
        what = "training, ours compiled / transformers"
        setting.tell(what, {"examples": ratio}, {"K": docs}, f"≥ {SPEED_AIM:g}", ratio >= SPEED_AIM)
        del steps
        release()


def beside(
    setting: Setting, side: Side, sheet: float, measured: float, budget: float
) -> tuple[float, int] | None:
    """Both sides with one number of passages, within `budget` seconds: transformers' examples a second and our best
    batch; None where not both fit."""
    docs, most, ends = side.docs, len(side.questions), setting.left - budget
    steps = Steps(side)
    error = steps.difference(BATCHES[0])
    aim = {"aim": f"≤ {SAME_LOSS:g}", "reached": error <= SAME_LOSS}
    setting.tell(
        "loss beside transformers'", {"error": error}, {"K": docs, "B": BATCHES[0]}, **aim, must=True
    )
    results: dict[str, dict[str, Any]] = {}
    makers = {"ours": steps.ours, "transformers": steps.theirs}
    sizes: dict[str, dict[int, float]] = {}
    for number, (name, make) in enumerate(makers.items()):
        stop = ends + (setting.left - ends) * (0.5 if number == 0 else 0.1)
        sizes[name] = tried(steps, make, lambda stop=stop: setting.left < stop, most)
        if not sizes[name]:
            setting.skip(f"training, K = {docs}, {name}", f"not even {BATCHES[0]} questions fit")
            return None
        questions = max(sizes[name], key=lambda b: b / sizes[name][b])
        rate = steps.flop(questions) / sizes[name][questions]
        bytes_held = peak(steps, make(questions))
        results[name] = {
            "examples_per_second": questions / sizes[name][questions],
            "mfu": rate / sheet,
            "of_measured_products": rate / measured,
            "peak_gb": bytes_held and bytes_held[0] / 1e9,
        }
        aim = {"aim": f"MFU ≥ {MFU_AIM}", "reached": rate / sheet >= MFU_AIM} if name == "ours" else {}
        where = {"K": docs, "B": questions, "side": name, "tried_up_to": max(sizes[name])}
        setting.tell("training", results[name], where, **aim)
    ratio = results["ours"]["examples_per_second"] / results["transformers"]["examples_per_second"]
    aim = f"≥ {SPEED_AIM:g}"
    ours_best = max(sizes["ours"], key=lambda b: b / sizes["ours"][b])
    best = results["transformers"]["examples_per_second"], ours_best
    setting.tell("training, ours / transformers", {"examples": ratio}, {"K": docs}, aim, ratio >= SPEED_AIM)
    common = max(sizes["ours"].keys() & sizes["transformers"].keys())
    peaks = [peak(steps, make(common)) for make in makers.values()]
    if peaks[0] is None or peaks[1] is None:
        setting.skip(f"memory, K = {docs}", "measured on a GPU alone")
        return best
    ratio = peaks[1][1] / peaks[0][1]
    metrics = {"times_less": ratio, "ours_gb": peaks[0][1] / 1e9, "transformers_gb": peaks[1][1] / 1e9}
    setting.tell(
        "memory of a step, transformers / ours",
        metrics,
        {"K": docs, "B": common},
        f"≥ {MEMORY_AIM:g}",
        ratio >= MEMORY_AIM,
    )
    return best

"""Part c: answers of BART-large with random weights beside transformers' RAG, both in bfloat16, same contexts.

Answers have 16 tokens. Both are called as benchmarks/compare.py calls them on a CPU in float32, where answers are
equal; bfloat16 rounds differently in differently grouped products, so here the share that is equal is told.
"""

import statistics
import tempfile
from pathlib import Path

import torch

from benchmarks import world
from benchmarks.gpu.setting import Setting, release
from benchmarks.machine import timed
from benchmarks.sides import Side, task

AIMS = {"token_greedy": 3.0, "token_beam4": 3.0, "thorough_beam4": 10.0}
DOCS = 5


def questions_at_once(memory: int) -> int:
    """How many questions are answered together: as many as a card of so many bytes decodes with four beams in ease."""
    return next((some for least, some in ((60e9, 64), (30e9, 32), (14e9, 16)) if memory >= least), 8)


def run(setting: Setting) -> int:
    size = world.SIZES["tiny" if setting.dry else "large"]
    docs, questions, passages = (2, 2, 30) if setting.dry else (DOCS, questions_at_once(setting.memory), 512)
    with tempfile.TemporaryDirectory() as folder:
        side = Side(size, docs, questions, passages, Path(folder), setting.device, with_faiss=False)
        side.generator.to(torch.bfloat16)
        for what, aim in AIMS.items():
            measured = task(what, side)
            calls = {"ours": measured.ours(), "transformers": measured.theirs()}
            seconds, answers = {}, {}
            for name, call in calls.items():
                answers[name] = measured.result(call())  # also the warm-up
                release()
                first = timed(call, setting.device)
                times = [first]
                while len(times) < 3 and setting.left > 4 * first:
                    times.append(timed(call, setting.device))
                seconds[name] = statistics.median(times)
            same = [a == b for a, b in zip(*answers.values(), strict=True)]
            ratio = seconds["transformers"] / seconds["ours"]
            metrics = {
                "times_faster": ratio,
                "questions_per_second": questions / seconds["ours"],
                "transformers_questions_per_second": questions / seconds["transformers"],
                "same_answers": sum(same) / len(same),
            }
            setting.tell(what, metrics, {"K": docs, "B": questions}, f"≥ {aim:g}", ratio >= aim)
            release()
    return 0

"""Section 2.5: how answers are searched for."""

from collections.abc import Iterator
from dataclasses import dataclass

from rag.errors import UserError

NO_TOKEN = -1  # stands after an answer's last token; no model generates it, as it may the padding token


@dataclass(frozen=True)
class Decoding:
    """How answers are searched for. The names are those of transformers' GenerationConfig; lengths in tokens.

    max_new_tokens: at most so many, end-of-sequence included and a forced first token not.
    num_beams: 1 is greedy search (or plain sampling).
    do_sample: draw tokens; temperature, top_k (0: all) and top_p matter only then.
    num_return_sequences: answers a question. RAG-Sequence gives fewer where it found fewer distinct ones.
    length_penalty: beams are ranked by log-probability / length^length_penalty.
    thorough: RAG-Sequence only: True Thorough, False Fast (section 2.5).

    RAG-Sequence takes from each passage all its beams; sampling without beams, num_return_sequences samples.
    """

    max_new_tokens: int = 25
    min_new_tokens: int = 0
    num_beams: int = 1
    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    num_return_sequences: int = 1
    length_penalty: float = 1.0
    thorough: bool = True

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "num_beams", "num_return_sequences"):
            if getattr(self, name) < 1:
                raise UserError(f"decoding.{name} is {getattr(self, name)}: give 1 or more")
        if self.temperature <= 0 or self.top_k < 0 or not 0 < self.top_p <= 1:
            raise UserError(
                f"decoding.temperature is {self.temperature}, top_k {self.top_k}, top_p {self.top_p}: give a "
                "temperature above 0, a top_k of 0 (all) or more, a top_p above 0 and at most 1"
            )
        if not 0 <= self.min_new_tokens <= self.max_new_tokens:
            raise UserError(
                f"decoding.min_new_tokens is {self.min_new_tokens}: give something from 0 to max_new_tokens, "
                f"which is {self.max_new_tokens}"
            )


def chunks(length: int, size: int) -> Iterator[slice]:
    size = max(1, size)
    return (slice(start, start + size) for start in range(0, length, size))

"""Section 2.5: the characters of an answer as its passage has them, for generators that read word pieces.

Joined word pieces of an uncased vocabulary are neither the passage's case nor its spacing: "10 - 4" for "10–4" is wrong
by exact match. Where a passage holds the answer's tokens, the answer is what is written there.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from rag.decoding.answers import Answer
from rag.generators.seq2seq import Generator
from rag.model import Contexts, RagModel


def quoted(model: RagModel, contexts: Contexts, answers: Sequence[Sequence[Answer]]) -> list[list[Answer]]:
    """The answers with the text of the first passage that holds their tokens, the likeliest by p(z|x,y) first; those
    that no passage holds as they are."""
    generator = model.generator
    result = []
    for question, of_question in enumerate(answers):
        quotes = []
        for answer in of_question:
            texts = _passages(model, contexts, question, answer)
            text = next((t for one in texts if (t := as_written(generator, answer.tokens, one))), None)
            quotes.append(answer if text is None else replace(answer, text=text))
        result.append(quotes)
    return result


def _passages(model: RagModel, contexts: Contexts, question: int, answer: Answer) -> list[str]:
    if contexts.texts is not None:
        return [contexts.texts[question]]
    if contexts.retrieved is None:
        return []
    store, separator = model.retriever.index.passages, model.generator.title_separator
    order = answer.posterior.argsort(descending=True, stable=True).tolist()
    rows = [int(answer.rows[doc]) for doc in order if answer.rows[doc] >= 0]
    return [f"{(passage := store[row]).title}{separator}{passage.text}" for row in rows]


def as_written(generator: Generator, tokens: Sequence[int], text: str) -> str | None:
    """The characters of `text` that the first run of these tokens, without end-of-sequence, stands for; None where
    there is no such run."""
    wanted = [token for token in tokens if token != generator.end_token]
    if not wanted:
        return None
    encoded: Any = generator.tokenizer(
        text, add_special_tokens=False, return_offsets_mapping=True, truncation=False, verbose=False
    )
    held, offsets = encoded["input_ids"], encoded["offset_mapping"]
    for start in range(len(held) - len(wanted) + 1):
        if held[start : start + len(wanted)] == wanted:
            return text[offsets[start][0] : offsets[start + len(wanted) - 1][1]].strip()
    return None

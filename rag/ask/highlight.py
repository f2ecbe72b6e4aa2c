"""Where the words of an answer stand in a passage, and the piece of the passage that shows them."""

from itertools import pairwise

from rag.index.splitting import sentences
from rag.words import answer_words, word_places

Spans = list[tuple[int, int]]  # beginning and end of each place, in characters

# Lucene's English stop words: they stand everywhere, and say nothing of where an answer is from.
_STOP_WORDS = frozenset(
    "a an and are as at be but by for if in into is it no not of on or such that the their then there these they "
    "this to was will with".split()
)


def answer_spans(text: str, answer: str) -> Spans:
    """The places in `text` where words of `answer` stand, in order; neighbours are one place.

    Words are compared as runs of letters, digits and marks, ignoring case. Stop words count only between two words
    that do ("Bank of England"), or where the answer has no others. In scripts without spaces, two neighbours of the
    answer's characters must be neighbours in the text too.
    """
    words, runs = answer_words(answer)
    telling = words - _STOP_WORDS or words
    text_words = list(word_places(text))
    hits = [word in telling for _, word in text_words]
    for position in range(1, len(text_words) - 1):
        if hits[position - 1] and hits[position + 1] and text_words[position][1] in words:
            hits[position] = True
    pairs = {pair for run in runs for pair in pairwise(run)}
    alone = {run[0] for run in runs if len(run) == 1}
    for position, (_, word) in enumerate(text_words):
        hits[position] |= word in alone
    for position, (((_, end), one), ((start, _), other)) in enumerate(pairwise(text_words)):
        if end == start and (one, other) in pairs:
            hits[position] = hits[position + 1] = True
    spans: Spans = []
    before = False
    for ((start, end), _), hit in zip(text_words, hits, strict=True):
        if hit and before:
            spans[-1] = (spans[-1][0], end)
        elif hit:
            spans.append((start, end))
        before = hit
    return spans


def answer_sentence(text: str, answer: str) -> str:
    """The first sentence of `text` with the answer word for word, or else with most of its words; "" without any."""
    best, most = "", 0
    for sentence in sentences(text):
        if answer and answer.casefold() in sentence.casefold():
            return sentence.strip()
        covered = sum(end - start for start, end in answer_spans(sentence, answer))
        if covered > most:
            best, most = sentence.strip(), covered
    return best


def snippet(text: str, spans: Spans, length: int) -> tuple[str, Spans]:
    """At most `length` characters of `text`, and "…" where it was cut, with the first place in it; and its places.

    The piece begins and ends between words.
    """
    if len(text) <= length:
        return text, spans
    first = spans[0][0] if spans else 0
    start = max(0, min(first - length // 3, len(text) - length))
    if start and 0 <= (space := text.find(" ", start - 1)) < first:
        start = space + 1
    end = min(len(text), start + length)
    if end < len(text) and (space := text.rfind(" ", start + 1, end + 1)) > first:
        end = space
    before, after = "… " if start else "", " …" if end < len(text) else ""
    shift = len(before) - start
    kept = [(max(s, start) + shift, min(e, end) + shift) for s, e in spans if s < end and e > start]
    return before + text[start:end] + after, kept

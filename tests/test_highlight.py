"""Where an answer's words are marked in a passage, worked out by hand."""

import pytest

from rag.ask.highlight import answer_spans, snippet

TEXT = "Ernest Hemingway wrote The Sun Also Rises in 1926. The rises were many."


def marked(text: str, spans: list[tuple[int, int]]) -> str:
    """The text with [ ] around each place."""
    for start, end in reversed(spans):
        text = f"{text[:start]}[{text[start:end]}]{text[end:]}"
    return text


@pytest.mark.parametrize(
    ("text", "answer", "expected"),
    [
        (TEXT, "hemingway", TEXT.replace("Hemingway", "[Hemingway]")),
        (TEXT, "Ernest Hemingway", TEXT.replace("Ernest Hemingway", "[Ernest Hemingway]")),
        # a stop word of the answer is marked between two words that are, and nowhere else
        (
            TEXT,
            "the Sun Also Rises",
            "Ernest Hemingway wrote The [Sun Also Rises] in 1926. The [rises] were many.",
        ),
        ("The Bank of England, of course.", "bank of england", "The [Bank of England], of course."),
        ("It is the end.", "the", "It is [the] end."),  # no other word
        ("Berliners of Berlin", "Berlin", "Berliners of [Berlin]"),  # whole words
        ("MÜNCHEN", "München", "[MÜNCHEN]"),
        ("1,926 and 1926", "1926", "1,926 and [1926]"),
        ("雨衣在西安出售，不在安康。", "西安", "雨衣在[西安]出售，不在安康。"),  # not a character alone
        ("店は九時に開きます。", "九時に", "店は[九時に]開きます。"),
        ("दुकान दिल्ली में है", "दिल्ली", "दुकान [दिल्ली] में है"),
        (TEXT, "Paris", TEXT),
        (TEXT, "", TEXT),
        ("", "Paris", ""),
    ],
)
def test_the_answers_words_are_marked(text, answer, expected):
    assert marked(text, answer_spans(text, answer)) == expected


@pytest.mark.parametrize(
    ("length", "answer", "expected"),
    [
        (len(TEXT), "1926", TEXT.replace("1926", "[1926]")),
        (20, "Ernest", "[Ernest] Hemingway …"),
        (20, "many", "… The rises were [many]."),
        (30, "1926", "… Rises in [1926]. The rises were …"),
        (20, "Paris", "Ernest Hemingway …"),
    ],
)
def test_a_snippet_holds_the_first_place(length, answer, expected):
    text, spans = snippet(TEXT, answer_spans(TEXT, answer), length)
    assert marked(text, spans) == expected


def test_a_word_longer_than_the_snippet():
    text, spans = snippet("a" * 50 + "b", [(0, 51)], 10)
    assert (text, spans) == ("a" * 10 + " …", [(0, 10)])

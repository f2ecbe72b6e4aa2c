"""How much of a text the passages support, against counting by hand and by brute force."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rag.ask.printed import supports
from rag.ask.reply_html import answer_html
from rag.ask.session import Reply, Source, supported
from rag.evaluation.answering import Answered
from rag.evaluation.judging import judge
from rag.metrics.support import PassageWords, Support, names_in, support
from rag.tasks.example import Example
from rag.tasks.text_to_text import TextToText

PASSAGES = [
    "The lighthouse of Varne",
    "The lighthouse was built in 1834 by the engineer Thomas Aldous. He died in 1850.",
]


def test_trigrams_by_hand():
    found = PassageWords(PASSAGES).of_sentence("The lighthouse was built by Thomas Aldous.")
    # the lighthouse was, lighthouse was built | was built by, built by thomas, by thomas aldous
    assert (found.ngrams, found.supported_ngrams, found.share) == (5, 2, 0.4)
    assert found.names == ("Thomas Aldous",) and found.unsupported_names == () and found.name_share == 1
    assert PassageWords(PASSAGES, n=1).of_sentence("The lighthouse was blue").share == 0.75
    short = PassageWords(PASSAGES).of_sentence("Thomas Aldous")
    assert short.ngrams == 0 and math.isnan(short.share) and short.name_share == 1


def test_titles_and_texts_are_apart():
    evidence = PassageWords(PASSAGES)
    assert evidence.of_sentence("of varne the").share == 0  # the end of a title and the beginning of a text
    assert evidence.of_sentence("Lighthouse OF Varne").share == 1  # whatever the case


@pytest.mark.parametrize(
    ("sentence", "names"),
    [
        ("The lighthouse was built in 1834 by Thomas Aldous of Varne.", ["1834", "Thomas Aldous", "Varne"]),
        ("In Paris, Marie Curie and Pierre Curie won.", ["Paris", "Marie Curie", "Pierre Curie"]),
        ("Penicillin was found by Fleming", ["Fleming"]),  # a capital that a sentence gives
        ("NATO and the U.S. Army met", ["NATO", "U.S. Army"]),
        ("Was Ada Abbott born on 3 May 1815?", ["Ada Abbott", "3 May 1815"]),
        ("Александр Пушкин родился в Москве", ["Александр Пушкин", "Москве"]),
        ("Ο Όμηρος έζησε στη Χίο", ["Ο Όμηρος", "Χίο"]),
        ("東京は1868年に首都になった", ["1868"]),
        ("nothing here", []),
        ("", []),
    ],
)
def test_names(sentence, names):
    assert names_in(sentence) == names


def test_names_that_no_passage_holds_are_named():
    found = PassageWords(PASSAGES).of_sentence("It was built in 1835 by Thomas Aldous and Aldous Thomas.")
    assert found.unsupported_names == ("1835", "Aldous Thomas") and found.name_share == pytest.approx(1 / 3)


def test_any_script():
    evidence = PassageWords(["東京は日本の首都である", "नई दिल्ली भारत की राजधानी है"])
    assert evidence.of_sentence("日本の首都").share == 1  # 日本の 本の首 の首都
    assert evidence.of_sentence("日本の人口").share == pytest.approx(1 / 3)
    assert evidence.of_sentence("भारत की राजधानी").share == 1
    assert (
        PassageWords(["re\u0301sume\u0301 of a cafe"]).of_sentence("Résumé of a").share == 1
    )  # composed or not


WORDS = st.lists(st.sampled_from(["a", "b", "Ba", "7", "é", "ß"]), max_size=8).map(" ".join)


@settings(max_examples=200, deadline=None)
@given(WORDS, st.lists(WORDS, max_size=3), st.integers(1, 4))
def test_against_brute_force(sentence, passages, n):
    """An n-gram is supported if it stands between spaces in a passage that is one line of words."""
    words = sentence.casefold().split()
    grams = [words[i : i + n] for i in range(len(words) - n + 1)]
    lines = [f" {passage.casefold()} " for passage in passages]
    expected = sum(any(f" {' '.join(gram)} " in line for line in lines) for gram in grams)
    found = PassageWords(passages, n).of_sentence(sentence)
    assert (found.ngrams, found.supported_ngrams) == (len(grams), expected)
    for name in found.names:
        held = any(f" {name.casefold()} " in line for line in lines)
        assert (name in found.unsupported_names) == (not held)


def test_the_metric_is_a_share_of_all_and_no_mean_of_shares():
    parts = [Support(10, 9, ("A",), ("A",)), Support(2, 0, (), ()), Support(0, 0, ("B", "C"), ())]
    trigrams, names = support(parts)
    assert (trigrams.value, trigrams.count) == (0.75, 2) and trigrams.low <= 0.75 <= trigrams.high
    assert (names.value, names.count) == (pytest.approx(2 / 3), 2)
    np.testing.assert_allclose(trigrams.per_example, [0.9, 0, np.nan])
    assert Support.all_of(parts).share == 0.75 and Support.all_of([]).names == ()
    nothing, _ = support([Support(0, 0, (), ())])
    assert math.isnan(nothing.value) and nothing.count == 0


def test_an_evaluation_reports_support_beside_distinct_trigrams(index):
    """Of the K passages that were read alone; the reference texts beside."""
    texts = ["Paris is the capital of France. Rome is not.", "The Tiber is a river in Spain"]
    answered = [
        Answered(0, {2: texts[0]}, -1.0, [0, 1, 6], [0.6, 0.4], [0.9, 0.1]),
        Answered(1, {2: texts[1]}, -1.0, [6, 5, 3], [0.6, 0.4], [0.9, 0.1]),
    ]
    examples = [Example("a", ("Berlin, on the river Spree",)), Example("b", ("Madrid lies high",))]
    records = judge(TextToText(), examples, answered, 2, "test", store=index.passages)
    found = {each.metric: (each.value, each.n, each.k) for each in records}
    # Of "Rome is not" and "river in Spain" nothing stands there: 4 of 5, and 4 of 5. "Paris" begins a sentence.
    assert found["trigrams_supported"] == (pytest.approx(8 / 10), 2, 2)
    assert found["names_supported"] == (pytest.approx(2 / 3), 2, 2)  # France, Tiber, not Spain
    assert found["trigrams_supported_gold"] == (
        pytest.approx(2 / 4),
        2,
        2,
    )  # "berlin on the", "madrid lies high"
    assert "distinct_trigrams" in found


def test_each_sentence_that_was_drawn_is_shown_with_its_support():
    source = Source("7", "Varne", PASSAGES[1], 1.0, 1.0, None)
    text = "The lighthouse was built in 1834. It fell on Narnia."
    reply = Reply("q", text, -1.0, (), (source,), support=tuple(supported(text, [source])))
    (first, good), (second, bad) = reply.support
    assert (first, good.share) == ("The lighthouse was built in 1834.", 1.0)
    assert (second, bad.share) == ("It fell on Narnia.", 0.0)
    assert reply.record()["support"][1] == {
        "sentence": second,
        "trigrams": 2,
        "supported_trigrams": 0,
        "names": ["Narnia"],
        "unsupported_names": ["Narnia"],
    }
    lines = [line.plain.strip() for line in supports(reply)]
    assert lines[1:] == [f"100%  {first}", f"0%  {second}  (not there: Narnia)"]
    assert "not there: Narnia" in answer_html(reply, "x") and "100%" in answer_html(reply, "x")

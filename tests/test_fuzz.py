"""Mutated files and random overrides give passages, questions and configurations, or one sentence; nothing else."""

import logging
import sys

import pytest

from benchmarks.fuzz.counts import Counts, count
from benchmarks.fuzz.overrides import fuzz_overrides
from benchmarks.fuzz.readers import fuzz_readers, readers
from rag.errors import LONGEST_SENTENCE, UserError
from rag.index.passage import Passage

# of Python's codec unicode_escape, one of the encodings
pytestmark = pytest.mark.filterwarnings("ignore:invalid (escape|octal):DeprecationWarning")


@pytest.fixture(autouse=True)
def no_warnings(capsys):
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


def nothing_broken(counts: dict[str, Counts]) -> None:
    assert not [problem for each in counts.values() for problem in each.broken]
    for name, each in counts.items():
        assert each.inputs == each.read + each.refused, name


def test_some_mutated_files():
    counts = fuzz_readers(700, seed=sys.hexversion)
    nothing_broken(counts)
    assert counts["read_passages"].read and counts["QuestionAnswering"].read
    assert counts["read_passages"].refused and counts["QuestionAnswering"].refused


def test_a_few_random_overrides():
    counts = fuzz_overrides(20)
    nothing_broken(counts)
    assert any(each.refused for each in counts.values())


@pytest.mark.slow
@pytest.mark.parametrize("reader", list(readers()))
def test_twenty_thousand_mutated_files(reader):
    nothing_broken(fuzz_readers(20_000, seed=1, only=reader))


@pytest.mark.slow
def test_two_hundred_random_overrides():
    nothing_broken(fuzz_overrides(200, seed=1))


def test_what_is_broken_is_told():
    """The check itself finds an exception, half a character, an empty text and an id that comes twice."""
    counts = Counts()
    count(counts, lambda: [Passage("1", "", " ")], "a")
    count(counts, lambda: [Passage("1", "", "\ud83d")], "b")
    count(counts, lambda: [Passage("1", "", "x"), Passage("1", "", "y")], "c")
    count(counts, lambda: [1 // 0], "d")
    assert [problem[0] for problem in counts.broken] == list("abcd")


def test_a_sentence_is_one_line_whatever_it_quotes():
    assert str(UserError("one\ntwo\u2028three\r\n")) == "one two three"
    sentence = str(UserError("found " + "x" * 100_000 + ": do this"))
    assert len(sentence) == LONGEST_SENTENCE + 3
    assert sentence.startswith("found x") and sentence.endswith("x: do this")

"""Words of any language, by hand and against Unicode's own boundaries."""

import json
import unicodedata
from pathlib import Path

import pytest
import regex
from hypothesis import given
from hypothesis import strategies as st

from rag.index.passage import Passage
from rag.index.passages import PassageStore
from rag.index.readers import read_passages
from rag.index.splitting import split_words
from rag.retrievers.lexical import BM25, Jaccard, TfIdf, Words, is_english
from rag.words import search_terms

ZH = Path(__file__).parents[2] / "shared/cases/zh"


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("The shop's 3.14 U.S. x-ray don't", "the shop 14 ray don"),
        ("Müller naïve Straße", "müller naïve strasse"),
        ("L’été à Paris", "été paris"),
        ("हिन्दी में किताब", "हिन्दी में किताब"),  # vowel signs and viramas are part of the word
        ("বাংলা ভাষার বই", "বাংলা ভাষার বই"),
        ("தமிழ் மொழி", "தமிழ் மொழி"),
        ("می\u200cروم کِتاب", "میروم کِتاب"),
        ("한국어 문장", "한국어 문장"),
        ("雨衣在哪里？", "雨衣 衣在 在哪 哪里"),
        ("茶", "茶"),
        ("ラーメンを食べる", "ラー ーメ メン ンを を食 食べ べる"),
        ("ｶﾅ ＡＢＣ", "カナ abc"),  # half and full width
        ("ไทยดี", "ไท ทย ยดี"),  # a vowel sign stays with its letter
        ("Python3在中国", "python3 在中 中国"),
        ("soft\u00adhyphen", "softhyphen"),
    ],
)
def test_search_terms_by_hand(text, terms):
    expected = [unicodedata.normalize("NFKC", term) for term in terms.split()]
    assert search_terms(text) == expected
    assert search_terms(unicodedata.normalize("NFD", text)) == expected


@given(st.text(st.characters(categories=["L", "N", "M", "Zs", "Po"]), max_size=30))
def test_words_with_spaces_end_where_unicodes_words_end(text):
    """A word of ours is one or several of UAX #29's, never a part of one but at an apostrophe, full stop or comma."""
    text = unicodedata.normalize("NFKC", text).casefold()
    boundaries = {match.start() for match in regex.finditer(r"(?w)\b", text)}
    joiners = regex.compile(
        r"[\p{WB=MidLetter}\p{WB=MidNum}\p{WB=MidNumLet}\p{WB=Single_Quote}\p{WB=Double_Quote}]"
    )
    if joiners.search(text) or regex.search(r"\p{Cf}|^\p{M}|[^\p{L}\p{N}\p{M}]\p{M}", text):
        return
    start = 0
    for term in search_terms(text):
        if regex.search(r"[\p{Han}\p{Hiragana}\p{Katakana}\u30FC\uFF70\p{LB=SA}]", term):
            continue
        start = text.index(term, start)
        assert {start, start + len(term)} <= boundaries, (text, term)
        start += len(term)


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("雨衣在哪里出售？雨衣在西安。", ["雨衣在哪里出", "售？雨衣在西", "安。"]),  # two characters: a word
        ("one two 雨衣在哪里 three", ["one two 雨衣", "在哪里 three"]),
        ("店は九時に開きます。", ["店は九時に開", "きます。"]),
    ],
)
def test_text_without_spaces_is_split(text, pieces):
    assert split_words(text, 3) == pieces


def test_a_long_japanese_text_becomes_passages():
    text = "店は九時に開きます。" * 100
    pieces = split_words(text)
    assert [len(piece) for piece in pieces[:-1]] != [] and "".join(pieces) == text
    assert all(150 <= len(piece) <= 230 for piece in pieces[:-1])


def store_of(texts: list[str], folder: Path) -> PassageStore:
    return PassageStore.write([Passage(str(i), "", text) for i, text in enumerate(texts)], folder / "s")


ENGLISH = "The shop in the old town is open and it sells bread of the day to those who are there. "
GERMAN = "Der Laden in der alten Stadt ist offen und verkauft das Brot des Tages an alle, die dort sind. "


def test_stop_words_are_those_of_the_language(tmp_path):
    english, german = store_of([ENGLISH * 20], tmp_path / "e"), store_of([GERMAN * 20], tmp_path / "g")
    chinese = store_of(["雨衣在西安出售。"], tmp_path / "c")
    assert [is_english(one) for one in (english, german, chinese)] == [True, False, False]
    assert BM25.build(english).words == Words("english", None)
    assert BM25.build(english, stemmer="auto").words == Words("english", "english")
    assert BM25.build(german).words == Words(None, None)
    assert BM25.build(german, language="german", stemmer="auto").words == Words("german", "german")
    assert BM25.build(german).search(["der"], 1)[1].tolist() == [[0]]
    assert BM25.build(german, language="german").search(["der"], 1)[1].tolist() == [[-1]]


@pytest.mark.parametrize("kind", [BM25, TfIdf, Jaccard])
def test_a_question_without_a_shared_word_finds_nothing(tmp_path, kind):
    store = store_of([ENGLISH, "雨衣在西安出售。"], tmp_path)
    scores, rows = kind.build(store).search(["zebra", "", "雨伞", "雨衣"], 2)
    assert rows.tolist() == [[-1, -1], [-1, -1], [-1, -1], [1, -1]]
    assert (scores == -float("inf")).tolist() == [[True, True], [True, True], [True, True], [False, True]]


@pytest.mark.skipif(not ZH.exists(), reason="needs ../shared/cases/zh")
@pytest.mark.parametrize("kind", [BM25, TfIdf, Jaccard])
def test_a_chinese_knowledge_base_is_found(tmp_path, kind):
    store = PassageStore.write(read_passages(ZH / "p.jsonl"), tmp_path / "s")
    questions = [json.loads(line) for line in (ZH / "dev.jsonl").read_text("utf-8").splitlines()]
    _, rows = kind.build(store).search([one["question"] for one in questions], 1)
    assert [store[row].id for row in rows[:, 0]] == [one["positive_ids"][0] for one in questions]

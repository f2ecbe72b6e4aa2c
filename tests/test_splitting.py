"""How texts are cut: by words, sentences, tokens and headings, with overlap, in scripts with and without spaces."""

import gzip
import json
import tracemalloc
from itertools import islice, pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rag.errors import UserError
from rag.index.passages import PassageStore, describe_corpus
from rag.index.readers import read_passages
from rag.index.reading import CorpusReading
from rag.index.splitting import cut, packed, pieces, sentences

MARKDOWN = """---
title: Shop
---
Intro words here.

# Returns

Goods may go back. Within thirty days.

```
# no heading
```

## Receipts

Keep them. <!--
## Hidden
-->
"""


def texts(path: Path, reading: CorpusReading) -> list[tuple[str, str, str]]:
    return [(p.id, p.title, p.text) for p in read_passages(path, reading)]


@pytest.fixture
def shop(tmp_path) -> Path:
    (tmp_path / "shop.md").write_text(MARKDOWN)
    return tmp_path / "shop.md"


def test_a_document_by_headings(shop):
    assert texts(shop, CorpusReading(split="headings")) == [
        ("shop.md#1", "Shop", "Intro words here."),
        ("shop.md#2", "Shop – Returns", "Goods may go back. Within thirty days.\n# no heading"),
        ("shop.md#3", "Shop – Returns – Receipts", "Keep them."),
    ]


def test_a_document_by_sentences_has_its_headings_in_the_text(shop):
    assert texts(shop, CorpusReading(split="sentences", size=8)) == [
        ("shop.md#1", "Shop", "Intro words here.\nReturns\nGoods may go back."),
        ("shop.md#2", "Shop", "Within thirty days.\n# no heading\nReceipts"),
        ("shop.md#3", "Shop", "Keep them."),
    ]


def test_words_are_the_papers_and_what_is_usual(shop):
    usual = texts(shop, CorpusReading())
    assert (
        usual
        == texts(shop, CorpusReading(split="words"))
        == texts(shop, CorpusReading(split="words", size=100))
    )
    assert len(usual) == 1 and usual[0][2].startswith("Intro words here. # Returns Goods")


def test_a_code_block_gives_no_title(tmp_path):
    (tmp_path / "a.md").write_text("~~~~\n# not this\n~~~\n# nor this\n~~~~\n\n# This\n\nText.")
    assert [title for _, title, _ in texts(tmp_path / "a.md", CorpusReading())] == ["This"]
    by_headings = texts(tmp_path / "a.md", CorpusReading(split="headings"))
    assert [title for _, title, _ in by_headings] == ["This", "This"]


def test_passages_of_tables_are_split_in_every_way(tmp_path):
    text = "# Old\n\nOne two. Three four.\n\n# New\n\nFive six."
    (tmp_path / "p.jsonl").write_text(json.dumps({"id": 7, "title": "T", "text": text}))
    path = tmp_path / "p.jsonl"
    assert texts(path, CorpusReading(split="headings")) == [
        ("7#1", "T – Old", "One two. Three four."),
        ("7#2", "T – New", "Five six."),
    ]
    by_sentences = texts(path, CorpusReading(split="sentences", size=5))
    assert [text for _, _, text in by_sentences] == ["# Old\nOne two.", "Three four.\n# New", "Five six."]
    assert texts(path, CorpusReading()) == [("7", "T", text)]
    assert texts(path, CorpusReading(split="sentences")) == [("7", "T", text)]  # it fits, and stays as it is


# -- overlap -------------------------------------------------------------------------------------


def test_overlap_by_hand():
    assert list(pieces("a b c d e f".split(), 3, 1)) == ["a b c", "c d e", "e f"]
    assert list(pieces("a b c".split(), 3, 2)) == ["a b c"]
    said = "One two. Three four. Five six. Seven."
    assert list(packed([said], 4, 2, whole=False)) == [
        "One two. Three four.",
        "Three four. Five six.",
        "Five six. Seven.",
    ]
    assert list(packed([said], 4, 1, whole=False)) == ["One two. Three four.", "Five six. Seven."]
    # a paragraph that fits goes on whole, with the sentence before it where there is room
    assert list(packed(["A b. C d.", "E f."], 5, 2)) == ["A b. C d.", "C d.\nE f."]
    assert list(packed(["A b. C d.", "E f g h i."], 5, 2)) == ["A b. C d.", "E f g h i."]


@given(
    st.lists(st.sampled_from(["A b.", "C", "d e f g!", "雨伞在苏州。", "H i j k l m n o p."]), max_size=12),
    st.integers(1, 6),
    st.integers(0, 5),
    st.sampled_from(["words", "sentences"]),
)
def test_no_word_is_lost_and_no_piece_too_long(parts, size, overlap, split):
    if overlap >= size:
        return
    text = " ".join(parts)
    whole = list(cut([text], CorpusReading(split=split, size=size)))
    assert "".join("".join(whole).split()) == "".join(text.split())
    repeated = list(cut([text], CorpusReading(split=split, size=size, overlap=overlap)))
    for piece in repeated:
        assert len(list(pieces(piece.split(), size))) == 1
    assert set("".join(repeated)) == set("".join(whole)) or not parts
    if split == "words":
        for one, other in pairwise(repeated):
            assert (
                overlap == 0
                or list(pieces(one.split(), 1))[-overlap:] == list(pieces(other.split(), 1))[:overlap]
            )


def test_sentences_end_in_any_script():
    assert sentences("हम गए। वे आए॥ ठीक है।") == ["हम गए।", "वे आए॥", "ठीक है।"]
    assert sentences("هل تعرف؟ نعم.") == ["هل تعرف؟", "نعم."]
    assert sentences("「行く。」と言った。そう。") == ["「行く。」", "と言った。", "そう。"]
    assert sentences("Dr. Roth, e.g. of 3.5 m. She left.") == ["Dr. Roth, e.g. of 3.5 m.", "She left."]


# -- tokens ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> str:
    from conftest import bert_tokenizer

    folder = tmp_path_factory.mktemp("tokenizer")
    bert_tokenizer(["the cat sat on a mat"]).save_pretrained(folder)
    return str(folder)


def test_tokens_are_the_tokenizers(tmp_path, tokenizer):
    from transformers import AutoTokenizer

    text = "the cats sat, on a mat; unknownword 猫猫猫 the end of it"
    (tmp_path / "a.txt").write_text(text * 20)
    count = AutoTokenizer.from_pretrained(tokenizer)
    for size, overlap in ((4, 0), (7, 3), (100, 10)):
        found = texts(
            tmp_path / "a.txt", CorpusReading(split="tokens", size=size, overlap=overlap, tokenizer=tokenizer)
        )
        assert len(found) > 1
        for _, _, piece in found:
            assert len(count(piece, add_special_tokens=False)["input_ids"]) <= size
        if not overlap:
            assert "".join("".join(piece for _, _, piece in found).split()) == "".join((text * 20).split())


def test_a_word_of_more_tokens_than_a_passage_is_cut(tmp_path, tokenizer):
    (tmp_path / "a.txt").write_text("catcatcatcat")
    found = texts(tmp_path / "a.txt", CorpusReading(split="tokens", size=1, tokenizer=tokenizer))
    assert "".join(piece for _, _, piece in found) == "catcatcatcat"


def test_a_tokenizer_that_is_not_there(tmp_path):
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(
        UserError, match="corpus.tokenizer=.*none cannot be opened .*: give a folder or hub name"
    ):
        texts(tmp_path / "a.txt", CorpusReading(split="tokens", tokenizer=str(tmp_path / "none")))
    with pytest.raises(UserError, match="give corpus.tokenizer="):
        CorpusReading(split="tokens")


# -- settings ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (
            {"split": "paragraphs"},
            "corpus.split=paragraphs does not exist: give words, sentences, tokens, headings",
        ),
        ({"split": "words", "size": 0}, "corpus.size=0: give a number of words, 1 or more"),
        ({"split": "words", "overlap": -1}, "corpus.overlap=-1: give a number of words, 0 or more"),
        ({"split": "words", "overlap": 100}, "corpus.overlap=100 repeats whole passages of corpus.size=100"),
        ({"split": "words", "size": 10, "overlap": 10}, "repeats whole passages of corpus.size=10"),
        ({"columns": {"body": "text"}}, "corpus.columns.body does not exist: there are id, title, text"),
    ],
)
def test_settings_that_make_no_sense(settings, sentence):
    with pytest.raises(UserError, match=sentence):
        CorpusReading(**settings)


def test_a_size_without_a_split(tmp_path):
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(UserError, match="corpus.size=50 needs to know what is cut where: give corpus.split="):
        read_passages(tmp_path / "a.txt", CorpusReading(size=50))
    assert CorpusReading(size=50).by("headings").length == 50  # rag.ask splits by headings anyway


def test_an_index_keeps_how_it_was_read(tmp_path):
    (tmp_path / "a.tsv").write_text("id\tbody\n1\tA b. C d.\n")
    asked = CorpusReading(split="sentences", size=2, columns={"text": "body", "title": None})
    store = PassageStore.prepare(tmp_path / "a.tsv", tmp_path / "s", reading=asked)
    assert store.reading == asked and [p.text for p in store] == ["A b.", "C d."]
    assert store.source is not None
    assert store.source["reading"] == {"split": "sentences", "size": 2, "columns": {"text": "body"}}
    assert PassageStore.prepare(tmp_path / "a.tsv", tmp_path / "s", reading=asked).sha256 == store.sha256
    with pytest.raises(UserError) as error:
        PassageStore.prepare(
            tmp_path / "a.tsv", tmp_path / "s", reading=CorpusReading(split="sentences", overlap=1)
        )
    assert "read with corpus.size=2 corpus.overlap=0 corpus.columns.text=body, not corpus.size=100 " in str(
        error.value
    )
    assert "reading" not in describe_corpus(tmp_path / "a.tsv")


def test_an_index_of_before_says_how_it_was_read():
    assert CorpusReading.of({"encoding": "latin-1", "words": 20}) == CorpusReading("latin-1", "words", 20)
    assert CorpusReading.of({"words": 100}) == CorpusReading(split="words")
    assert CorpusReading.of({"path": "x"}) == CorpusReading() == CorpusReading.of(None)


# -- memory --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "line", "split", "size", "most"),
    [
        ("a.txt.gz", "A b c d e. \n", "words", 4_000_000, 1_600_000),
        ("a.txt.gz", "A b c d e.\n\n", "sentences", 4_000_000, 1_600_000),
        ("a.jsonl.gz", '{"text": "A b c d e."}\n', None, 20_000_000, 8_000_000),
        ("a.tsv.gz", "t\tA b c d e.\n", None, 4_000_000, 1_600_000),
    ],
)
def test_a_packed_file_is_a_stream(tmp_path, name, line, split, size, most):
    """Some kilobytes that unpack to megabytes of lines, in a part of these."""
    (tmp_path / name).write_bytes(gzip.compress((line * (size // len(line))).encode()))
    assert (tmp_path / name).stat().st_size < 80_000
    passages = read_passages(tmp_path / name, CorpusReading(split=split))
    tracemalloc.start()
    try:
        count = sum(1 for _ in islice(passages, 300))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert count == 300 and peak < most

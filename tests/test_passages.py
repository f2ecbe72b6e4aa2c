import csv
import gzip
import io
import json
import lzma
import os
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from rag.errors import UserError
from rag.files import hash_file
from rag.index import passages
from rag.index.passage import Passage, SeenIds
from rag.index.passages import PassageStore
from rag.index.readers import read_passages
from rag.index.splitting import split_words
from rag.index.tokens import TokenStore, tokenizer_fingerprint
from rag.words import split_units

WIKI = Path(__file__).parents[2] / "shared/data/wiki_open/passages.tsv.xz"
TWO = [Passage("1", "Rome", 'The "eternal" city.'), Passage("2", "Nile, the", "A river\tof Africa.")]
TWO_TSV = 'id\ttext\ttitle\n1\t"The ""eternal"" city."\tRome\n2\t"A river\tof Africa."\tNile, the\n'


def word_tokenizer(words: str, size: int = 0) -> PreTrainedTokenizerFast:
    """A tokenizer of whole words, numbered from 1 in the given order; `size` fills the vocabulary up."""
    vocabulary = {"?": 0} | {word: i for i, word in enumerate(words.split(), start=1)}
    vocabulary |= {f"filler{i}": i for i in range(len(vocabulary), size)}
    rules = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    rules.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=rules, unk_token="?")


# ---------------------------------------------------------------------------------- splitting


def test_split_words_by_hand():
    assert split_words("a b  c\nd e", words=2) == ["a b", "c d", "e"]
    assert split_words("  ") == []
    assert [len(piece.split()) for piece in split_words("w " * 250)] == [100, 100, 50]


@given(st.text(), st.integers(1, 7))
def test_split_words_is_disjoint_and_complete(text, words):
    pieces = split_words(text, words)
    assert "".join("".join(pieces).split()) == "".join(text.split())
    if all(len(list(split_units([word]))) == 1 for word in text.split()):  # no script without spaces
        assert [word for piece in pieces for word in piece.split()] == text.split()
        assert all(len(piece.split()) == words for piece in pieces[:-1])


# ---------------------------------------------------------------------------------- reading


@pytest.mark.parametrize("suffix", ["", ".gz", ".xz"])
def test_tsv_plain_and_compressed(tmp_path, suffix):
    path = tmp_path / f"psgs.tsv{suffix}"
    opener = {"": open, ".gz": gzip.open, ".xz": lzma.open}[suffix]
    with opener(path, "wb") as file:
        file.write(TWO_TSV.encode())
    assert list(read_passages(path)) == TWO


def test_tsv_header_in_another_order_with_crlf_mark_and_more_columns(tmp_path):
    path = tmp_path / "psgs.tsv"
    path.write_bytes(
        b"\xef\xbb\xbftitle\tid\turl\ttext\r\nRome\t7\tu\tA city.\r\n\r\nNile\t9\tv\tA river.\r\n"
    )
    assert list(read_passages(path)) == [Passage("7", "Rome", "A city."), Passage("9", "Nile", "A river.")]


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_jsonl(tmp_path, suffix):
    path = tmp_path / f"corpus.jsonl{suffix}"
    lines = '{"id": 1, "title": "Rome", "text": "A city."}\n\n{"id": "b", "text": "Ünïted\\n"}\n'
    path.write_bytes(gzip.compress(lines.encode()) if suffix else lines.encode())
    assert list(read_passages(path)) == [Passage("1", "Rome", "A city."), Passage("b", "", "Ünïted\n")]


def test_parquet_file_and_folder_leave_embeddings_unread(tmp_path):
    for name, rows in (("train-00000.parquet", TWO[:1]), ("train-00001.parquet", TWO[1:])):
        columns = {
            "id": [p.id for p in rows],
            "text": [p.text for p in rows],
            "title": [p.title for p in rows],
            "embeddings": [[0.5, 1.0]] * len(rows),
        }
        pq.write_table(pa.table(columns), tmp_path / name)
    assert list(read_passages(tmp_path)) == TWO
    assert list(read_passages(tmp_path / "train-00001.parquet")) == TWO[1:]


def test_folder_of_texts_is_split_into_titled_passages(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.md").write_text("intro\n## The Nile ##\n" + "w " * 150, encoding="utf-8")
    (tmp_path / "sub" / "b.txt").write_text("one two", encoding="utf-8")
    (tmp_path / "blank.txt").write_text(" \n")
    passages = list(read_passages(tmp_path))
    assert [(p.id, p.title, len(p.text.split())) for p in passages] == [
        ("a.md#1", "The Nile", 100),
        ("a.md#2", "The Nile", 51),
        ("sub/b.txt#1", "b", 2),
    ]
    assert passages[0].text.startswith("intro w w")


@pytest.mark.skipif(not WIKI.exists(), reason="needs ../shared/data/wiki_open")
def test_real_wikipedia_equals_the_csv_module():
    with lzma.open(WIKI, "rt", encoding="utf-8", newline="") as file:
        expected = [
            Passage(row["id"], row["title"], row["text"])
            for row in islice(csv.DictReader(file, delimiter="\t"), 20_000)
        ]
    assert list(islice(read_passages(WIKI), 20_000)) == expected


@given(st.lists(st.tuples(st.text(), st.text().filter(lambda text: text.strip())), min_size=1, max_size=5))
def test_what_the_csv_module_writes_is_read_back(tmp_path_factory, rows):
    rows = [[cell.replace("\r", " ") or "x" for cell in row] for row in rows]
    text = io.StringIO()
    writer = csv.writer(text, delimiter="\t", lineterminator="\n")
    writer.writerow(["id", "title", "text"])
    writer.writerows([i, *row] for i, row in enumerate(rows))
    path = tmp_path_factory.mktemp("csv") / "psgs.tsv"
    path.write_bytes(text.getvalue().encode("utf-8", errors="ignore"))
    with open(path, newline="", encoding="utf-8") as file:
        expected = [Passage(*row) for row in islice(csv.reader(file, delimiter="\t"), 1, None)]
    if all(p.text.strip() for p in expected):
        assert list(read_passages(path)) == expected


# ---------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    "name, content, sentence",
    [
        ("a.tsv", b"", "is empty"),
        ("a.tsv", b"id\ttext\ttitle\n", "holds no passages"),
        ("a.tsv", b"a\t1\tA city.\tRome\n", "line 1: no header, and 4 columns: give it a first line"),
        ("a.tsv", b"A city\tit is\tRome\n", "line 1: no header, and a first column that holds no ids"),
        ("a.tsv", b"id\ttitle\n1\tA city.\n", "line 1: the header has no column text"),
        ("a.tsv", b"id\ttext\ttitle\n1\tx\ty\n2\tA city.\n", "line 3: 2 columns where the header has 3"),
        ("a.tsv", b"id\ttext\ttitle\n1\tx\ty\tz\n", "line 2: 4 columns where the header has 3"),
        ("a.tsv", b'id\ttext\ttitle\n1\t"x\ny\n', "line 2: 2 columns where the header has 3"),
        ("a.tsv", b"id\ttext\ttitle\n1\t \ty\n", "line 2: the text of passage '1' is empty"),
        ("a.tsv", b"id\ttext\ttitle\n1\tx\ty\n2\t\xff\ty\n", "line 3: not UTF-8"),
        ("a.tsv", b"id\ttext\ttitle\n1\tx\ty\n2\tx\ty\n1\tx\ty\n", "line 4: the id '1' occurs twice"),
        (
            "a.tsv",
            b"id\ttext\ttitle\na\tx\ty\nb\tx\ty\na\tx\ty\nc\tx\ty\n",
            "line 4: the id 'a' occurs twice",
        ),
        ("a.tsv.gz", gzip.compress(TWO_TSV.encode(), mtime=0)[:-12], "damaged or was cut short"),
        ("a.tsv.gz", b"not gzip", "damaged or was cut short"),
        ("a.tsv.xz", lzma.compress(TWO_TSV.encode())[:-12], "damaged or was cut short"),
        ("a.jsonl", b"", "is empty"),
        ("a.jsonl", b'{"id": 1, "text": "x"}\n{"id": 2,\n', "line 2: malformed JSON"),
        ("a.jsonl", b'{"id": 1}\n', "line 1: no text"),
        ("a.jsonl", b'{"id": 1, "text": ["x", 3]}\n', "line 1: text is ['x', 3]"),
        ("a.jsonl", b'[1, "x"]\n', "line 1: a JSON object is expected"),
        ("a.jsonl", b'{"id": 1, "text": "\xff"}\n', "line 1: not UTF-8"),
        ("a.jsonl", b'{"id": 1, "text": "x"}\n{"id": "1", "text": "x"}\n', "line 2: the id '1' occurs twice"),
        ("a.parquet", b"PAR1 no", "is not a Parquet file"),
        ("a.csv", b"id,text\n", "holds no passages"),
        ("a.xlsx", b"no", "is not in a supported format"),
    ],
)
def test_bad_files_are_refused_with_their_line(tmp_path, name, content, sentence):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        list(read_passages(path))
    assert str(path) in str(error.value)
    assert sentence in str(error.value)


def test_missing_file_folder_without_texts_and_parquet_without_columns(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        read_passages(tmp_path / "none.tsv")
    with pytest.raises(UserError, match="nothing to read"):
        list(read_passages(tmp_path))
    pq.write_table(pa.table({"id": ["1"], "body": ["x"]}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match="has no column text"):
        list(read_passages(tmp_path))


@given(st.lists(st.one_of(st.integers(0, 40).map(str), st.text(max_size=2)), max_size=60))
def test_seen_ids_equals_a_set(ids):
    seen = SeenIds()
    repeated_numbers = any([not seen.add(id) for id in ids])  # every id, so no generator
    assert (repeated_numbers or bool(seen.repeated())) == (len(set(ids)) < len(ids))


# ---------------------------------------------------------------------------------- the passage store


def numbered(count: int) -> list[Passage]:
    return [Passage(str(i + 3), f"title {i % 5}", f"text of {i} é") for i in range(count)]


def test_store_gives_back_every_passage_across_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(passages, "_ROWS_PER_BATCH", 4)
    expected = numbered(11)
    store = PassageStore.write(iter(expected), tmp_path / "deep" / "passages")
    assert len(store) == 11
    assert list(store) == expected
    assert [store[row] for row in range(11)] == expected
    assert store.slice(2, 9) == expected[2:9]
    assert store.slice(8, 99) == expected[8:]
    assert store.ids(np.array([10, -1, 0])) == ["13", "", "3"]
    assert [store.row_of(p.id) for p in expected] == list(range(11))
    with pytest.raises(IndexError):
        store[-1]  # "nothing found" must never be the last passage
    with pytest.raises(IndexError):
        store[11]
    with pytest.raises(KeyError):
        store.row_of("2")


def test_store_hash_is_of_the_corpus_not_of_the_file(tmp_path, monkeypatch):
    first = PassageStore.write(numbered(9), tmp_path / "a").sha256
    monkeypatch.setattr(passages, "_ROWS_PER_BATCH", 2)
    assert PassageStore.write(numbered(9), tmp_path / "b").sha256 == first
    assert PassageStore.write(numbered(8), tmp_path / "c").sha256 != first
    moved = [Passage("1", "ab", "c")], [Passage("1", "a", "bc")]
    assert len({PassageStore.write(p, tmp_path / f"d{i}").sha256 for i, p in enumerate(moved)}) == 2


def test_store_finds_rows_of_ids_that_are_not_running_numbers(tmp_path):
    ids = ["wiki:7", "5", "4", "9", "x"]
    store = PassageStore.write([Passage(id, "", "t") for id in ids], tmp_path / "s")
    assert [store.row_of(id) for id in ids] == [0, 1, 2, 3, 4]


def test_store_refuses_repeated_ids_and_no_passages_and_leaves_nothing(tmp_path):
    for ids in (["1", "2", "1"], ["a", "b", "a"]):
        with pytest.raises(UserError, match="occurs twice"):
            PassageStore.write([Passage(id, "", "t") for id in ids], tmp_path / "s")
    with pytest.raises(UserError, match="no passages"):
        PassageStore.write([], tmp_path / "s")
    assert list(tmp_path.iterdir()) == []


def test_store_that_is_missing_cut_short_or_edited_is_refused(tmp_path):
    with pytest.raises(UserError, match="holds no passages"):
        PassageStore.open(tmp_path)
    folder = PassageStore.write(numbered(9), tmp_path / "s").folder
    meta = json.loads((folder / "store.json").read_text())
    (folder / "store.json").write_text(json.dumps(meta | {"passages": 8_000}))
    with pytest.raises(UserError, match="1 blocks instead of 2"):
        PassageStore.open(folder)
    (folder / "store.json").write_text(json.dumps({"format": 1}))
    with pytest.raises(UserError, match="damaged or was edited"):
        PassageStore.open(folder)
    (folder / "store.json").write_text(json.dumps(meta))
    data = (folder / "passages.arrow").read_bytes()
    (folder / "passages.arrow").write_bytes(data[:-10])
    with pytest.raises(UserError, match=rf"has {len(data) - 10:,} bytes instead of {len(data):,}"):
        PassageStore.open(folder)


def test_prepare_writes_once_and_refuses_a_corpus_that_changed(tmp_path, monkeypatch):
    corpus = tmp_path / "psgs.tsv"
    corpus.write_text(TWO_TSV)
    first = PassageStore.prepare(corpus, tmp_path / "s")
    assert list(first) == TWO
    assert first.source is not None and first.source["path"] == str(corpus)
    with monkeypatch.context() as patch:
        patch.setattr(passages, "CorpusReader", lambda *_: pytest.fail("read again"))
        assert PassageStore.prepare(corpus, tmp_path / "s").sha256 == first.sha256
        corpus.touch()  # another time of change, the same bytes
        assert PassageStore.prepare(corpus, tmp_path / "s").sha256 == first.sha256
    corpus.write_text(TWO_TSV + "3\tAn island.\tCrete\n")
    with pytest.raises(UserError, match=r"holds the 2 passages of .* choose another index.path"):
        PassageStore.prepare(corpus, tmp_path / "s")
    assert list(PassageStore.open(tmp_path / "s")) == TWO


# ---------------------------------------------------------------------------------- the token store


def test_tokens_by_hand(tmp_path):
    store = PassageStore.write([Passage("1", "b", "a c"), Passage("2", "a", "z")], tmp_path / "s")
    tokens = TokenStore.write(store, word_tokenizer("a b c /"), tmp_path / "t")
    flat, lengths = tokens.gather(np.array([1, 0, -1, 1]))
    assert lengths.tolist() == [3, 4, 0, 3]
    assert flat.tolist() == [1, 4, 0, 2, 4, 1, 3, 1, 4, 0]  # a / ?   b / a c   a / ?
    assert (flat.dtype, lengths.dtype) == (np.int64, np.int64)
    assert (tmp_path / "t/tokens.bin").stat().st_size == 7 * 2
    empty, none = tokens.gather(np.array([], np.int64))
    assert len(empty) == len(none) == 0
    with pytest.raises(IndexError):
        tokens.gather(np.array([2]))


def test_large_vocabularies_take_four_bytes(tmp_path):
    store = PassageStore.write([Passage("1", "b", "filler70000 a")], tmp_path / "s")
    tokens = TokenStore.write(store, word_tokenizer("a b /", size=70_001), tmp_path / "t")
    assert tokens.gather(np.array([0]))[0].tolist() == [2, 3, 70_000, 1]
    assert (tmp_path / "t/tokens.bin").stat().st_size == 4 * 4


@pytest.fixture(scope="module")
def many_tokens(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokens")
    texts = ["a " * (i * 7 % 13) + "b" for i in range(1500)]  # more than one batch of the tokenizer
    store = PassageStore.write([Passage(str(i), f"c{i}", text) for i, text in enumerate(texts)], folder / "s")
    tokenizer = word_tokenizer("a b /")
    return store, tokenizer, TokenStore.write(store, tokenizer, folder / "t")


@given(st.lists(st.integers(-1, 1499), max_size=20))
def test_gather_equals_a_loop(many_tokens, rows):
    store, tokenizer, tokens = many_tokens
    expected = [
        [] if row < 0 else tokenizer(f"{store[row].title} / {store[row].text}")["input_ids"] for row in rows
    ]
    flat, lengths = tokens.gather(np.array(rows, dtype=np.int64))
    assert lengths.tolist() == [len(ids) for ids in expected]
    assert flat.tolist() == [id for ids in expected for id in ids]


def test_fingerprint_changes_with_the_rules_and_not_with_use():
    tokenizer = word_tokenizer("a b")
    before = tokenizer_fingerprint(tokenizer)
    tokenizer.pad_token = "?"
    fresh = tokenizer_fingerprint(tokenizer)
    tokenizer(["a", "a b"], padding=True, truncation=True, max_length=4)
    assert tokenizer_fingerprint(tokenizer) == fresh
    assert (
        before == tokenizer_fingerprint(word_tokenizer("a b")) != tokenizer_fingerprint(word_tokenizer("b a"))
    )
    with pytest.raises(UserError, match="not a fast tokenizer"):
        tokenizer_fingerprint(object())


def test_tokens_of_another_tokenizer_or_cut_short_are_refused(tmp_path):
    store = PassageStore.write([Passage("1", "b", "a c")], tmp_path / "s")
    with pytest.raises(UserError, match="holds no tokens"):
        TokenStore.open(tmp_path / "t")
    TokenStore.write(store, word_tokenizer("a b c /"), tmp_path / "t")
    with pytest.raises(UserError, match="holds tokens of tokenizer .* not of"):
        TokenStore.open(tmp_path / "t", word_tokenizer("a c /"))
    (tmp_path / "t/tokens.bin").write_bytes(b"\0\0")
    with pytest.raises(UserError, match="has 2 bytes instead of 8"):
        TokenStore.open(tmp_path / "t")
    meta = json.loads((tmp_path / "t/tokens.json").read_text())
    del meta["dtype"]
    (tmp_path / "t/tokens.json").write_text(json.dumps(meta))
    with pytest.raises(UserError, match="was edited"):
        TokenStore.open(tmp_path / "t")


def test_a_folder_is_known_by_its_files_sizes_and_times_alone(tmp_path, monkeypatch):
    """wiki_dpr's 85 GB are hashed when the store is written, and then no more; a change of one file is seen."""
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for number in range(2):
        rows = [{"id": str(number), "text": f"text {number}", "title": "a"}]
        pq.write_table(pa.Table.from_pylist(rows), corpus / f"{number}.parquet")
    first = PassageStore.prepare(corpus, tmp_path / "s")
    hashed = []
    monkeypatch.setattr("rag.index.catalog.hash_file", lambda file: hashed.append(file) or hash_file(file))
    assert PassageStore.prepare(corpus, tmp_path / "s").sha256 == first.sha256
    assert not hashed
    file = corpus / "0.parquet"
    os.utime(file, ns=(0, file.stat().st_mtime_ns - 5))  # older, and the newest file's time stays what it was
    assert PassageStore.prepare(corpus, tmp_path / "s").sha256 == first.sha256
    assert len(hashed) == 2
    pq.write_table(pa.Table.from_pylist([{"id": "0", "text": "other", "title": "a"}]), file)
    with pytest.raises(UserError, match="not those of .* as it is now"):
        PassageStore.prepare(corpus, tmp_path / "s")

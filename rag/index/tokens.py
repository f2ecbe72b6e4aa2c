"""The generator's tokens of "title / text" for all passages, memory-mapped (section 2.3).

Made once when an index is first used with a generator, so that a batch is a gather and a concatenation.
"""

import hashlib
import json
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int64

from rag.errors import UserError
from rag.files import read_json, write_aside, write_json
from rag.fingerprints import check_hashes, described, digest
from rag.index.passage import Passage
from rag.progress import progress_bar

if TYPE_CHECKING:
    from rag.index.passages import PassageStore

_TOKENS_FORMAT = 1
LOOKED_AT, BLOCKS_LOOKED_AT = (
    64,
    4,
)  # passages of a block that is looked at when a store is opened, and blocks


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """Twelve hexadecimal digits that tell one fast tokenizer from another: a hash of its vocabulary and
    rules.

    Truncation and padding, which change with use, do not count.
    """
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise UserError(
            f"{type(tokenizer).__name__} is not a fast tokenizer: use one that has a tokenizer.json"
        )
    rules = json.loads(tokenizer.backend_tokenizer.to_str())
    rules.pop("truncation", None)
    rules.pop("padding", None)
    return hashlib.sha256(json.dumps(rules, sort_keys=True).encode()).hexdigest()[:12]


def unread_words(tokenizer: Any, words: Sequence[str]) -> list[str]:
    """Those of the words that a tokenizer has no token for, in whole or in part."""
    unknown = tokenizer.unk_token_id
    if unknown is None or not words:
        return []
    tokens = tokenizer(list(words), add_special_tokens=False)["input_ids"]
    return [word for word, own in zip(words, tokens, strict=True) if unknown in own]


def passage_tokens(
    tokenizer: Any, passages: Sequence[Passage], title_separator: str, prefix: str
) -> list[list[int]]:
    """The tokens of "title / text" of each passage, wherever the passages come from."""
    return tokenizer(
        [prefix + p.title + title_separator + p.text for p in passages],
        add_special_tokens=False,
        padding=False,
        truncation=False,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
    )["input_ids"]


class TokenStore:
    """The generator's tokens of "title / text" for all N passages: one flat array and N + 1 offsets,
    memory-mapped."""

    def __init__(
        self, folder: Path, tokens: np.ndarray, offsets: Int64[np.ndarray, " offsets"], meta: dict[str, Any]
    ):
        self.folder = folder
        self.fingerprint: str = meta["tokenizer"]
        self.title_separator: str = meta["title_separator"]
        self.corpus_sha256: str = meta["corpus_sha256"]
        self._tokens = tokens
        self._offsets = offsets
        self._vocabulary: int = meta.get("vocabulary", np.iinfo(tokens.dtype).max)  # older stores do not say
        self._files: dict[str, dict[str, Any]] = meta.get("files", {})

    @classmethod
    def write(
        cls,
        store: "PassageStore",
        tokenizer: Any,
        folder: Path | str,
        title_separator: str = " / ",
        show_progress: bool = False,
        prefix: str = "",
    ) -> "TokenStore":
        """Tokenise every passage as `prefix` + title + `title_separator` + text, without special tokens, and
        open the result.

        The folder appears when it is complete. Numbers take 2 bytes if the vocabulary allows, else 4.
        """
        folder = Path(folder)
        fingerprint = tokenizer_fingerprint(tokenizer)
        dtype = np.dtype(np.uint16 if max(tokenizer.get_vocab().values()) < 1 << 16 else np.int32)
        total = 0
        with (
            write_aside(folder) as aside,
            progress_bar("tokenising passages", len(store), "passages", show=show_progress) as bar,
        ):
            aside.mkdir()
            with open(aside / "tokens.bin", "wb") as flat, open(aside / "offsets.bin", "wb") as offsets:
                offsets.write(np.zeros(1, np.int64).tobytes())
                passages = iter(store)
                while block := list(islice(passages, 1024)):
                    encoded = passage_tokens(tokenizer, block, title_separator, prefix)
                    ends = total + np.cumsum([len(tokens) for tokens in encoded], dtype=np.int64)
                    total = int(ends[-1])
                    offsets.write(ends.tobytes())
                    flat.write(np.concatenate([np.asarray(tokens, dtype) for tokens in encoded]).tobytes())
                    bar(len(block))
            meta = {
                "format": _TOKENS_FORMAT,
                "tokenizer": fingerprint,
                "title_separator": title_separator,
                "corpus_sha256": store.sha256,
                "passages": len(store),
                "tokens": total,
                "dtype": dtype.name,
                "vocabulary": len(tokenizer),
                "files": described(aside),
            }
            write_json(aside / "tokens.json", meta | {"checksum": digest(meta)})
        return cls.open(folder, tokenizer)

    @classmethod
    def open(cls, folder: Path | str, tokenizer: Any = None) -> "TokenStore":
        """Map the tokens in `folder`.

        Raises UserError if they are missing, cut short, or made by another tokenizer than `tokenizer`.
        """
        folder = Path(folder)
        if not (folder / "tokens.json").is_file():
            raise UserError(f"{folder} holds no tokens (tokens.json is missing): tokenise the passages again")
        meta = read_json(folder / "tokens.json")
        try:
            if (checksum := meta.pop("checksum", None)) is not None and checksum != digest(meta):
                raise KeyError("its checksum does not fit")
            if meta["format"] != _TOKENS_FORMAT:
                raise UserError(f"{folder} is of format {meta['format']}, not {_TOKENS_FORMAT}: delete it")
            dtype, total, count = np.dtype(meta["dtype"]), meta["tokens"], meta["passages"]
            for name, size in (("tokens.bin", total * dtype.itemsize), ("offsets.bin", (count + 1) * 8)):
                size_on_disk = (folder / name).stat().st_size if (folder / name).is_file() else 0
                if size_on_disk != size:
                    raise UserError(
                        f"{folder / name} has {size_on_disk:,} bytes instead of {size:,}: it was cut short or "
                        f"altered; delete {folder} to tokenise the passages again"
                    )
            tokens = np.memmap(folder / "tokens.bin", dtype, "r") if total else np.empty(0, dtype)
            offsets = np.memmap(folder / "offsets.bin", np.int64, "r")
            store = cls(folder, np.asarray(tokens), np.asarray(offsets), meta)
            store._look(total)
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{folder / 'tokens.json'} was edited ({error!r}): delete {folder} to tokenise again"
            ) from error
        if tokenizer is not None and (wanted := tokenizer_fingerprint(tokenizer)) != store.fingerprint:
            raise UserError(
                f"{folder} holds tokens of tokenizer {store.fingerprint}, not of {wanted}: "
                "tokenise the passages with this tokenizer"
            )
        return store

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def lengths(self, rows: Int64[np.ndarray, " N"] | None = None) -> Int64[np.ndarray, " N"]:
        """How many tokens the passages of `rows` have, or all of them."""
        if rows is None:
            return np.diff(self._offsets)
        return self._offsets[rows + 1] - self._offsets[rows]

    def __reduce__(self):  # another process maps the same files
        return TokenStore.open, (self.folder,)

    def gather(
        self, rows: Int64[np.ndarray, " N"]
    ) -> tuple[Int64[np.ndarray, " flat"], Int64[np.ndarray, " N"]]:
        """The tokens of `rows`, one passage after the other, and how many each has; a row of -1 has none."""
        rows = np.asarray(rows, dtype=np.int64)
        if rows.size and not (-1 <= rows.min() and rows.max() < len(self)):
            raise IndexError(f"rows from {rows.min()} to {rows.max()} of {len(self)} passages")
        is_passage = rows >= 0
        starts = self._offsets[np.where(is_passage, rows, 0)]
        lengths = np.where(is_passage, self._offsets[np.where(is_passage, rows + 1, 0)] - starts, 0)
        if rows.size and not (
            lengths.min() >= 0 and starts.min() >= 0 and (starts + lengths).max() <= len(self._tokens)
        ):
            raise self._damaged("offsets.bin", "offsets that do not ascend")
        before = np.cumsum(lengths) - lengths  # where each passage begins in the result
        positions = np.arange(lengths.sum()) + np.repeat(starts - before, lengths)
        tokens = self._tokens[positions].astype(np.int64)
        if tokens.size and tokens.max() >= self._vocabulary:
            raise self._damaged("tokens.bin", "numbers that are no token")
        return tokens, lengths

    def _look(self, total: int) -> None:
        """UserError unless the first and last passages and some in between are within the file and the vocabulary."""
        count = len(self)
        if not (self._offsets[0] == 0 and self._offsets[-1] == total):
            raise self._damaged("offsets.bin", "offsets of another file")
        for first in {0, max(0, count - LOOKED_AT), *_random_starts(count)}:
            self.gather(np.arange(first, min(first + LOOKED_AT, count)))

    def _damaged(self, name: str, what: str) -> UserError:
        return UserError(
            f"{self.folder / name} holds {what}, so it was altered: delete {self.folder} to tokenise the passages again"
        )

    def verify(self) -> None:
        """Read every byte; UserError where a file is not what was written."""
        advice = f"delete {self.folder} to tokenise the passages again"
        check_hashes(self.folder, self._files, lambda _: advice, anew=True)
        for first in range(0, len(self), 4_096):
            self.gather(np.arange(first, min(first + 4_096, len(self))))


def _random_starts(count: int) -> list[int]:
    """Where a few blocks begin that are looked at when a store is opened, others each time."""
    return np.random.default_rng().integers(0, max(1, count - LOOKED_AT), BLOCKS_LOOKED_AT).tolist()

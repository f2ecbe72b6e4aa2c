"""The generator's tokens of "title / text" for all passages, memory-mapped (section 2.3).

Made once when an index is first used with a generator, so that a batch is a gather and a concatenation.
"""

import hashlib
import json
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int64

from rag.errors import UserError
from rag.files import read_json, write_aside, write_json
from rag.progress import progress_bar

if TYPE_CHECKING:
    from rag.index.passages import PassageStore

_TOKENS_FORMAT = 1


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
                    encoded = tokenizer(
                        [prefix + p.title + title_separator + p.text for p in block],
                        add_special_tokens=False,
                        padding=False,
                        truncation=False,
                        return_attention_mask=False,
                        return_token_type_ids=False,
                        verbose=False,
                    )["input_ids"]
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
            }
            write_json(aside / "tokens.json", meta)
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
        except (KeyError, TypeError) as error:
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
        before = np.cumsum(lengths) - lengths  # where each passage begins in the result
        positions = np.arange(lengths.sum()) + np.repeat(starts - before, lengths)
        return self._tokens[positions].astype(np.int64), lengths

"""How a corpus is read: the settings of configs/corpus, which an index keeps, so that other ones are noticed.

Section 3 cuts Wikipedia into disjoint passages of 100 words, and so are text files cut here where nothing else is said;
tables and JSON hold passages already, which stay whole.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from rag.errors import UserError, listed

SPLITS = ("words", "sentences", "tokens", "headings")
SIZE = 100  # words or tokens of a passage, where nothing else is said
COLUMNS = ("id", "title", "text")


@dataclass(frozen=True)
class CorpusReading:
    """How the files of a corpus become passages.

    encoding: of text files; None is UTF-8, or what a byte order mark says.
    split: "words" cuts every text into pieces of `size` words, whatever they say; "sentences" fills pieces with whole
        sentences; "tokens" with whole words, `size` counting the tokens of `tokenizer`; "headings" fills them with
        whole paragraphs or sentences, and never crosses a heading. None: text files by words, other passages whole.
    size: words (or tokens) of a piece at most; None: 100.
    overlap: so many words (or tokens) at most that end a piece begin the next one, whole sentences of them unless the
        split is by words or tokens.
    tokenizer: a folder or hub name, for split="tokens".
    columns: which column or field is the id, the title or the text, by its name; those that are not named are found
        (rag/index/fields.py).

    Raises UserError for what is none of that.
    """

    encoding: str | None = None
    split: str | None = None
    size: int | None = None
    overlap: int = 0
    tokenizer: str | None = None
    columns: Mapping[str, str | None] = field(default_factory=dict)

    def __post_init__(self):
        if self.split is not None and self.split not in SPLITS:
            raise UserError(f"corpus.split={self.split} does not exist: give {listed(SPLITS)}, or null")
        for name, least in (("size", 1), ("overlap", 0)):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < least):
                raise UserError(f"corpus.{name}={value}: give a number of words, {least} or more")
        if self.overlap >= self.length:
            raise UserError(
                f"corpus.overlap={self.overlap} repeats whole passages of corpus.size={self.length}: give less"
            )
        if unknown := [name for name in self.columns or () if name not in COLUMNS]:
            raise UserError(f"corpus.columns.{unknown[0]} does not exist: there are {listed(COLUMNS)}")
        given = {name: str(column) for name, column in (self.columns or {}).items() if column is not None}
        object.__setattr__(self, "columns", given)
        if self.split is not None:
            object.__setattr__(self, "size", self.length)
        if self.split != "tokens":
            object.__setattr__(self, "tokenizer", None)
        elif self.tokenizer is None:
            raise UserError("corpus.split=tokens counts a tokenizer's tokens: give corpus.tokenizer=…")

    @property
    def length(self) -> int:
        """Words or tokens of a piece at most."""
        return SIZE if self.size is None else self.size

    def by(self, split: str) -> "CorpusReading":
        """This one, by `split` where it names no split itself."""
        return replace(self, split=split) if self.split is None else self

    def checked(self) -> "CorpusReading":
        """This one. UserError where a size is given, and nothing that it is of."""
        if self.split is None and (self.size is not None or self.overlap):
            name = "overlap" if self.size is None else "size"
            raise UserError(
                f"corpus.{name}={getattr(self, name)} needs to know what is cut where: give corpus.split="
                f"{listed(SPLITS)} with it"
            )
        return self

    def settings(self) -> dict[str, Any]:
        """What is not as usual, by the settings' names: what an index keeps of it, and `of` reads."""
        return {
            each.name: dict(value) if isinstance(value, Mapping) else value
            for each in fields(self)
            if (value := getattr(self, each.name)) != getattr(AS_USUAL, each.name)
        }

    @classmethod
    def of(cls, source: Mapping[str, Any] | None) -> "CorpusReading":
        """How the passages of an index were read, from what it says of its source."""
        kept = source or {}
        if "reading" not in kept and (
            "encoding" in kept or "words" in kept
        ):  # of indexes that were built before
            words = kept.get("words")
            return cls(kept.get("encoding"), None if words is None else "words", words)
        return cls(**kept.get("reading", {}))

    def unlike(self, other: "CorpusReading") -> str:
        """Those of its settings that are not the other's, as they are typed: "corpus.split=words corpus.size=50"."""
        mine, theirs = (
            {f"corpus.{name}": value for name, value in asdict(each).items() if name != "columns"}
            | {f"corpus.columns.{name}": each.columns.get(name) for name in COLUMNS}
            for each in (self, other)
        )
        differ = [name for name in mine if mine[name] != theirs[name]]
        return " ".join(f"{name}={'null' if mine[name] is None else mine[name]}" for name in differ)


AS_USUAL = CorpusReading()

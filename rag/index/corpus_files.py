"""Which files a corpus is: one, or those of a folder that can be read; the others are named and counted."""

import logging
import re
from pathlib import Path

from rag.errors import UserError, listed
from rag.files import read_json
from rag.index.passage import counted, has_half_pair, without_half_pairs
from rag.index.rich_text import INSTALL, is_rich, lacks
from rag.index.text_folders import files_below, is_text, kinds_of
from rag.text_files import plain_name, unreadable

log = logging.getLogger(__name__)

_SHARD = re.compile(r"(.+)-(\d+)-of-(\d+)\.parquet")
FORMATS = (
    ".tsv, .csv, .jsonl, .json, .txt or .md (each also .gz or .xz), .html, .pdf, .docx, .parquet, a folder that "
    "`datasets` saved (save_to_disk), or a folder of such files"
)
TABLES = (".tsv", ".csv", ".jsonl", ".json")


def existing(path: Path | str, advice: str) -> Path:
    """The path of something that exists. UserError, ending in the advice, where nothing does or may be seen there."""
    path = Path(path)
    try:
        path.stat()
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: {advice}") from None
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from error
    return path


def is_document(file: Path) -> bool:
    """Whether a file is running text, by its name, rather than a table of passages."""
    return is_text(Path(plain_name(file))) or is_rich(file)


def is_mixture(files: list[Path]) -> bool:
    """Whether documents are among the files of a corpus: then its tables are parts of it, as documents are."""
    return any(map(is_document, files))


def document_name(corpus: Path, file: Path) -> str:
    """What a file of a corpus is called: its path in the folder, or its name."""
    name = file.relative_to(corpus).as_posix() if corpus.is_dir() else file.name
    return without_half_pairs(name) if has_half_pair(name) else name


def corpus_files(path: Path) -> tuple[list[Path], list[Path]]:
    """The files of a corpus that are read, in their order, and those of a folder that are not.

    Of a folder: the data files of `datasets`, BEIR's corpus.jsonl beside its queries, its .parquet files, or else all
    documents and tables in it and in its folders. Raises UserError where there is nothing to read.
    """
    if not path.is_dir():
        return [path], []
    try:
        files = _of_datasets(path)
    except OSError as error:
        raise unreadable(path, error) from error
    if files:
        return files, []
    if (path / "corpus.jsonl").is_file() and (path / "queries.jsonl").is_file():  # BEIR's
        return [path / "corpus.jsonl"], []
    if files := sorted(path.glob("*.parquet")):
        check_shards(path, files)
        return files, []
    skipped: list[Path] = []
    chosen: list[Path] = []
    for file in files_below(path, skipped):
        known = not lacks(file) if is_rich(file) else is_document(file) or plain_name(file).endswith(TABLES)
        (chosen if known else skipped).append(file)
    if not chosen:
        content = f"found {kinds_of(skipped)}{_needed(skipped)}" if skipped else "it is empty"
        raise UserError(f"{path} has nothing to read: {content}; expected {FORMATS}")
    return chosen, skipped


def tell_left_out(corpus: Path, left_out: list[Path]) -> None:
    """A warning that counts and names what is not read of a folder."""
    if left_out:
        log.warning(
            "%s: %s left out: %s%s",
            corpus,
            counted(len(left_out), "file"),
            kinds_of(left_out),
            _needed(left_out),
        )


def _needed(left_out: list[Path]) -> str:
    kinds = sorted(
        {file.suffix.lower() for file in left_out if is_rich(file) and not file.name.startswith(".")}
    )
    return f" ({listed(kinds)} are read after {INSTALL} in the project's folder)" if kinds else ""


def _of_datasets(folder: Path) -> list[Path]:
    """The data files of a folder that `datasets` wrote with save_to_disk; none where it is another folder."""
    if (folder / "dataset_dict.json").is_file():
        splits = read_json(folder / "dataset_dict.json").get("splits")
        if not isinstance(splits, list) or len(splits) != 1:
            places = ", ".join(str(folder / str(name)) for name in splits or [])
            raise UserError(f"{folder} holds several splits: give one of them: {places}")
        folder = folder / str(splits[0])
    if not ((folder / "state.json").is_file() and (folder / "dataset_info.json").is_file()):
        return []
    state = read_json(folder / "state.json")
    try:
        files = [folder / Path(each["filename"]).name for each in state["_data_files"]]
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{folder / 'state.json'} does not name the data files ({error!r}): save it again"
        ) from None
    if state.get("_indices_data_files"):
        raise UserError(
            f"{folder} names its rows by an index of an earlier `datasets`: open and save it again"
        )
    if missing := [file.name for file in files if not file.is_file()]:
        raise UserError(f"{folder} lacks {listed(missing)}: save or copy it again")
    if not files:
        raise UserError(f"{folder} holds no rows")
    return files


def check_shards(folder: Path, files: list[Path]) -> None:
    """Say which of files that are numbered as NAME-00003-of-00157.parquet are not there.

    UserError where a download was broken off beside them; otherwise a warning, since a part may be meant.
    """
    for name in sorted({match[1] for file in files if (match := _SHARD.fullmatch(file.name))}):
        numbered = [match for file in files if (match := _SHARD.fullmatch(file.name)) and match[1] == name]
        count = max(int(match[3]) for match in numbered)
        there = {int(match[2]) for match in numbered if int(match[3]) == count}
        if missing := sorted(set(range(count)) - there):
            first = f"{name}-{missing[0]:0{len(numbered[0][2])}d}-of-{numbered[0][3]}.parquet"
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            missed = f"{folder} lacks {first}{more} of {count} files"
            if any(folder.glob(".*.partial")):
                raise UserError(
                    f"{missed}, and a download was broken off there: run it again (python -m rag.download)"
                )
            log.warning("%s: the rest is taken for all there is", missed)

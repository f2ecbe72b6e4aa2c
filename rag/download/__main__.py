"""The data of the paper's tasks and corpora, from where they are: python -m rag.download NAME … [into=FOLDER]

  python -m rag.download list                  all data sets, with sizes and licences
  python -m rag.download nq psgs_w100          questions and passages, to where the configs look for them (data/)
  python -m rag.download wiki_dpr into=/disk   another folder; give the scripts paths.data=/disk

Rerun the same command to resume; complete files are not fetched again. Sizes and checksums are verified. HF_ENDPOINT
selects another hub, HTTPS_PROXY a proxy.
"""

import os
import sys
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any
from urllib.parse import quote
from zipfile import BadZipFile, ZipFile

from rag.cli import mistakes_in_one_sentence
from rag.download.fetch import MB, Fetcher, Remote, check_room, left_to_fetch
from rag.download.sources import NOT_PUBLIC, SOURCES, Archive, HubFiles, Source
from rag.errors import UserError
from rag.files import write_aside
from rag.progress import progress_bar
from rag.runs import PROJECT
from rag.safe_text import say

_COPIED = 1 << 20  # bytes of an archive's file that are copied at once


def parse(arguments: Sequence[str]) -> tuple[list[str], Path]:
    """The names, each once, and the folder; UserError for an unknown name or setting."""
    names: list[str] = []
    into = PROJECT / "data"
    alias = {other: name for name, source in SOURCES.items() for other in source.also}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if equals and key == "into" and value:
            into = Path(value).expanduser()
        elif equals or argument.startswith("-"):
            raise UserError(f"{argument} is not a setting: the only one is into=FOLDER")
        elif argument in NOT_PUBLIC:
            raise UserError(f"{argument}: {NOT_PUBLIC[argument]}")
        elif (name := alias.get(argument, argument)) in SOURCES:
            names.append(name)
        else:
            near = get_close_matches(argument, [*SOURCES, *alias], n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise UserError(
                f"{argument} is not a data set: {hint}There are {', '.join(SOURCES)}, or all with `list`"
            )
    if not names:
        raise UserError(f"name what is to be fetched: {', '.join(SOURCES)}; `list` says what they are")
    return list(dict.fromkeys(names)), into


def download(names: Sequence[str], into: Path, wait: float = 1.0) -> None:
    """Fetch the named data sets to their places below `into`. Raises UserError; what is complete by then stays."""
    with Fetcher(wait) as fetcher:
        plans = {name: plan(SOURCES[name], into, fetcher) for name in names}
        check_room(into, sum(room(SOURCES[name], plans[name]) for name in names))
        for name in names:
            source = SOURCES[name]
            say(f"{name}: {source.what}; licence: {source.licence}")
            for path, remote in plans[name].items():
                fetched = fetcher.fetch(remote, path)
                say(
                    f"  {path} ({path.stat().st_size / MB:,.1f} MB){'' if fetched else ' was there'}",
                    flush=True,
                )
            if source.archive is not None:
                for path in unpack(source.archive, into) if plans[name] else places(source, into):
                    say(f"  {path} ({path.stat().st_size / MB:,.1f} MB){'' if plans[name] else ' was there'}")
            if source.make is not None and source.hub is not None:
                for path in source.make(into / source.hub.folder, into / source.made):
                    say(f"  {path} ({path.stat().st_size / MB:,.1f} MB)")
    if into.resolve() != (PROJECT / "data").resolve():
        say(f"the scripts look for it there with paths.data={into}")


def places(source: Source, into: Path) -> list[Path]:
    """Where a source's files will be; those of a hub data set are not known beforehand."""
    members = source.archive.members.values() if source.archive else ()
    return [into / path for path in (*source.files, *members)]


def room(source: Source, plan: dict[Path, Remote]) -> int:
    """Bytes that a plan still needs on the disk, as far as they are known."""
    unpacked = source.archive.unpacked if source.archive is not None and plan else 0
    return unpacked + sum(left_to_fetch(remote, path) for path, remote in plan.items())


def plan(source: Source, into: Path, fetcher: Fetcher) -> dict[Path, Remote]:
    """The files that are to be fetched, each with its place; no archive whose files are all there."""
    if source.hub is not None:
        return hub_files(source.hub, into, fetcher)
    if source.archive is not None:
        done = all(path.exists() for path in places(source, into))
        return {} if done else {into / source.archive.path: source.archive.remote}
    return {into / path: remote for path, remote in source.files.items()}


def hub_files(wanted: HubFiles, into: Path, fetcher: Fetcher) -> dict[Path, Remote]:
    """The files of a hub data set with the sizes and SHA-256 that the hub states. HF_ENDPOINT is the hub's address."""
    from huggingface_hub import constants, get_token

    page = f"{constants.ENDPOINT}/datasets/{wanted.repo}"
    if constants.HF_HUB_OFFLINE:
        raise UserError(f"HF_HUB_OFFLINE is set, so that {page} is not asked: unset it")
    token = get_token()
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    refused = f"request access at {page}, then log in with `hf auth login`"
    folder = wanted.begin.rpartition("/")[0]
    tree = f"{constants.ENDPOINT}/api/datasets/{wanted.repo}/tree/main/{folder}?recursive=true"
    listed = fetcher.listing(Remote((tree,), headers=headers, refused=refused), page)
    files = [
        one
        for one in listed
        if one.get("type") == "file"
        and one["path"].startswith(wanted.begin)
        and one["path"].endswith(wanted.end)
    ]
    if not files:
        raise UserError(f"{page} has no {wanted.begin}*{wanted.end} any more: look there for where it is now")
    return {
        into / wanted.folder / one["path"]: Remote(
            (f"{page}/resolve/main/{quote(one['path'])}",),
            one["size"],
            one["lfs"]["oid"] if one.get("lfs") else None,
            headers,
            refused,
        )
        for one in files
    }


# -- archives ------------------------------------------------------------------------------------


def unpack(archive: Archive, into: Path) -> list[Path]:
    """Take the wanted files out of a fetched archive, which goes then; their places."""
    path = into / archive.path
    left = {name: into / path_inside for name, path_inside in archive.members.items()}
    with _whole(path):
        for member, file, size in _members(path):
            name = next((one for one in left if member == one or member.endswith(f"/{one}")), None)
            if name is None:
                continue
            path_inside = left.pop(name)
            if not path_inside.exists():
                total = -(-size // MB)
                with (
                    write_aside(path_inside) as aside,
                    open(aside, "wb") as out,
                    progress_bar(f"unpacking {path_inside.name}", total, "MB") as advance,
                ):
                    done = 0
                    while data := file.read(_COPIED):
                        out.write(data)
                        advance((done + len(data)) // MB - done // MB)
                        done += len(data)
            if not left:
                break
    if left:
        raise UserError(
            f"{path} holds no {' nor '.join(left)}: take out by hand what holds the data, or report it"
        )
    path.unlink()
    return [into / path_inside for path_inside in archive.members.values()]


def _members(path: Path) -> Iterator[tuple[str, Any, int]]:
    """(name, open file, bytes) of each file in an archive, in its order."""
    if path.suffix == ".zip":
        with ZipFile(path) as archive:
            for info in archive.infolist():
                if not info.is_dir():
                    with archive.open(info) as file:
                        yield info.filename, file, info.file_size
        return
    with tarfile.open(path, "r|*") as archive:
        for info in archive:
            if info.isfile():
                yield info.name.removeprefix("./"), archive.extractfile(info), info.size


@contextmanager
def _whole(path: Path) -> Iterator[None]:
    try:
        yield
    except (tarfile.TarError, BadZipFile, EOFError, zlib.error) as error:
        raise UserError(
            f"{path} is not a whole archive ({error}): remove it, and it is fetched again"
        ) from error


# -- the command ---------------------------------------------------------------------------------


def show_list() -> None:
    """What can be fetched, a paragraph each."""
    for name, source in SOURCES.items():
        files = [*source.files.values(), *([source.archive.remote] if source.archive else [])]
        sizes = [remote.size for remote in files]
        known = sum(size for size in sizes if size)
        size = f", {known / MB:,.0f} MB" if files and all(sizes) else ""
        print(f"{name}{size}: {source.what}\n    licence: {source.licence}")
        hub = source.hub
        say(
            f"    from {os.environ.get('HF_ENDPOINT', 'the hub')}: {hub.repo}, {hub.begin}*"
            if hub
            else f"    from {', '.join(dict.fromkeys(remote.urls[0].split('/')[2] for remote in files))}"
        )
        if source.also:
            print(f"    also called {', '.join(source.also)}")
    for name, why in NOT_PUBLIC.items():
        print(f"{name}: cannot be fetched\n    {why}")


def main(arguments: Sequence[str]) -> int:
    """The command; mistakes leave it as one sentence and exit code 2."""
    if not arguments or {"-h", "--help"} & set(arguments):
        print(__doc__)
        print(f"Names: {', '.join(SOURCES)}")
        return 0
    with mistakes_in_one_sentence():
        if list(arguments) == ["list"]:
            show_list()
        else:
            download(*parse(arguments))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Files from the network: resumed where they broke off, checked, and never half there.

    URL ──▶ .NAME.partial ──size, SHA-256 or the packing's own checksum──▶ NAME

What was received stays in .NAME.partial, so that the same call resumes there (HTTP Range), in the same process or
a later one. A server that ignores Range, or whose file has changed since, starts the file over.
"""

import gzip
import hashlib
import json
import os
import shutil
import time
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from rag.errors import UserError
from rag.files import one_process
from rag.progress import progress_bar

if TYPE_CHECKING:
    import httpx2 as httpx
else:
    try:  # what huggingface_hub brings along: its version 2 the one, version 1 the other
        import httpx2 as httpx
    except ImportError:
        import httpx

TRIES = 5  # in a row without a byte
LONGEST_WAIT = 60.0  # seconds between two of them
MB = 1_000_000
_CHUNK = 1 << 20
_BUSY = {408, 425, 429, 500, 502, 503, 504}


@dataclass(frozen=True)
class Remote:
    """A file somewhere else: where (further places are tried in turn), and what is known of it beforehand."""

    urls: tuple[str, ...]
    size: int | None = None  # bytes
    sha256: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    refused: str = ""  # what to do where access is refused


class _NextPlace(Exception):
    """This place does not have the file; its message says why, another place may."""


class _Again(Exception):
    """What may pass: the same place is asked again, after `wait` seconds where it says so."""

    def __init__(self, reason: str, wait: float | None = None):
        super().__init__(reason)
        self.wait = wait


class Fetcher:
    """Fetches files, one after the other, over shared connections.

    wait: seconds before the second try of a request that failed; each further one waits twice as long.
    """

    def __init__(self, wait: float = 1.0, show: bool = True):
        self.wait = wait
        self.show = show
        self._client = httpx.Client(follow_redirects=True, timeout=httpx.Timeout(60.0, connect=20.0))

    def __enter__(self) -> "Fetcher":
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def fetch(self, remote: Remote, path: Path) -> bool:
        """Put the file at `path`; False if it was there already.

        Raises UserError where no place has it or can be reached, access is refused, the disk is full, or what came is
        not what was expected; a part that a later call can resume is kept, anything else is discarded.
        """
        with one_process(path):
            if path.exists():
                check_size(path, remote)
                return False
            partial = partial_of(path)
            reasons = []
            for url in remote.urls:
                try:
                    self._transfer(url, remote, path, partial)
                    self._check(url, remote, path, partial)
                except _NextPlace as error:
                    reasons.append(str(error))
                    continue
                _forget_origin(partial)
                os.replace(partial, path)
                return True
        raise UserError(f"{path.name} was not fetched: {'; '.join(reasons)}")

    def listing(self, remote: Remote, what: str) -> list:
        """The array that a JSON interface answers with, all of its pages; `what` is how a message calls it."""
        rows: list = []
        url: str | None = remote.urls[0]
        failures = 0
        while url is not None:
            try:
                answer = self._client.get(url, headers=dict(remote.headers) | {"User-Agent": "rag"})
                if answer.status_code in _BUSY:
                    raise _Again(f"the server answers {answer.status_code}", _retry_after(answer))
                if answer.status_code != 200:
                    raise UserError(
                        f"{what} refuses to say what it holds (HTTP {answer.status_code}): {remote.refused}"
                    )
                page = answer.json()
                if not isinstance(page, list):
                    raise ValueError("no array")
            except (httpx.ConnectError, httpx.ConnectTimeout, httpx.ProxyError) as error:
                raise UserError(f"{what} cannot be reached ({error}): check the network connection") from None
            except (httpx.TransportError, _Again) as error:
                failures += 1
                if failures >= TRIES:
                    raise UserError(
                        f"{what} failed {TRIES} times in a row ({error}): try again later"
                    ) from None
                self._pause(failures, error.wait if isinstance(error, _Again) else None)
            except ValueError:
                raise UserError(
                    f"{what} does not answer as a hub does, at {url}: check HF_ENDPOINT"
                ) from None
            else:
                rows += page
                url = answer.links.get("next", {}).get("url")
        return rows

    def _pause(self, failures: int, wait: float | None) -> None:
        time.sleep(min(self.wait * 2 ** max(failures - 1, 0) if wait is None else wait, LONGEST_WAIT))

    # -- from one place -------------------------------------------------------------------------

    def _transfer(self, url: str, remote: Remote, path: Path, partial: Path) -> None:
        """Receive what is missing of .NAME.partial, however often the connection breaks off."""
        failures = 0
        reached = False
        while True:
            before = _size(partial)
            try:
                with _disk(path):
                    self._receive(url, remote, path, partial)
                return
            except httpx.TransportError as error:
                unreachable = isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | httpx.ProxyError)
                if unreachable and not reached and not before:
                    raise _NextPlace(
                        f"{urlsplit(url).hostname} cannot be reached ({error}): check the network "
                        f"connection, or download {url} on another machine and put it at {path}"
                    ) from None
                reason, wait = str(error) or type(error).__name__, None
            except _Again as error:
                reason, wait = str(error), error.wait
            reached = True
            failures = 0 if _size(partial) > before else failures + 1
            if failures >= TRIES:
                raise _NextPlace(
                    f"{url} failed {TRIES} times in a row ({reason}): rerun the same command to resume; what was "
                    "received is kept"
                )
            self._pause(failures, wait)

    def _receive(self, url: str, remote: Remote, path: Path, partial: Path) -> None:
        have = _size(partial)
        origin = _origin(partial)
        if have and not (remote.sha256 or origin.get("url") == url):
            have = 0  # begun at another place, and nothing would tell whether the two parts fit
        headers = dict(remote.headers) | {"Accept-Encoding": "identity", "User-Agent": "rag"}
        if have and have == remote.size:
            return
        if have:
            headers["Range"] = f"bytes={have}-"
            if origin.get("version") and origin.get("url") == url:
                headers["If-Range"] = origin["version"]
        with self._client.stream("GET", url, headers=headers) as answer:
            if answer.status_code == 416 and have:
                if _total(answer) == have:
                    return  # complete: only the end of the connection was missing
                partial.unlink()
                raise _Again("the part that was there does not fit the file")
            _check_status(answer, url, path, remote)
            if answer.status_code == 206 and _first(answer) == have:
                total = _total(answer)
            else:
                have, total = 0, _length(answer)
            if total is not None and remote.size is not None and total != remote.size:
                partial.unlink(missing_ok=True)
                raise _NextPlace(
                    f"{url} offers {total:,} bytes where {remote.size:,} are expected: the file changed"
                )
            if have and total is not None and origin.get("total", total) != total:
                partial.unlink()
                raise _Again("the file changed meanwhile")
            check_room(path.parent, (total or remote.size or 0) - have)
            _remember_origin(partial, url, total, answer)
            with (
                open(partial, "ab" if have else "wb") as out,
                _bar(path.name, total or remote.size, have, self.show) as advance,
            ):
                for data in answer.iter_raw():  # as it comes: larger blocks would be lost where it breaks off
                    out.write(data)
                    advance(len(data))
        if total is not None and _size(partial) < total:
            raise _Again(f"it broke off after {_size(partial):,} of {total:,} bytes")

    def _check(self, url: str, remote: Remote, path: Path, partial: Path) -> None:
        """Throw away, and say, what is not the file that was expected."""
        wrong = ""
        size = _size(partial)
        if remote.size is not None and size != remote.size:
            wrong = f"{size:,} bytes where {remote.size:,} are expected"
        elif remote.sha256 is not None:
            digest = _sha256(partial, path.name, self.show)
            if digest != remote.sha256:
                wrong = f"a file with SHA-256 {digest[:12]}… where {remote.sha256[:12]}… is expected"
        elif path.suffix in (".gz", ".tgz"):
            wrong = _broken_gzip(partial)
        if wrong:
            partial.unlink()
            _forget_origin(partial)
            raise _NextPlace(
                f"{url} gave {wrong}, which was discarded: try again; if it happens again, the file there has "
                "changed or something between alters it"
            )


# -- what else is asked beforehand ---------------------------------------------------------------


def partial_of(path: Path) -> Path:
    """Where a file is kept until it is complete and checked."""
    return path.with_name(f".{path.name}.partial")


def left_to_fetch(remote: Remote, path: Path) -> int:
    """Bytes that are still to come, as far as is known: 0 for a file that is there or of unknown size."""
    return 0 if path.exists() else max(0, (remote.size or 0) - _size(partial_of(path)))


def check_size(path: Path, remote: Remote) -> None:
    """UserError for a file that is there and has another size than the one that would be fetched."""
    if remote.size is not None and path.stat().st_size != remote.size:
        raise UserError(
            f"{path} is there with {path.stat().st_size:,} bytes, {remote.size:,} are expected: remove it, and it is "
            "fetched again"
        )


def check_room(folder: Path, needed: int) -> None:
    """UserError if the disk that `folder` is on, or will be, has less than `needed` bytes free."""
    there = next(one for one in (folder, *folder.absolute().parents) if one.exists())
    free = shutil.disk_usage(there).free
    if needed > free:
        raise UserError(
            f"{needed / MB:,.0f} MB are to be fetched and {there} has {free / MB:,.0f} MB free: make room, or choose "
            "another disk with into=FOLDER"
        )


# -- the partial file and where it is from -------------------------------------------------------


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _origin_file(partial: Path) -> Path:
    return partial.with_name(f"{partial.name}.json")


def _origin(partial: Path) -> dict[str, Any]:
    try:
        value = json.loads(_origin_file(partial).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _remember_origin(partial: Path, url: str, total: int | None, answer: httpx.Response) -> None:
    tag = answer.headers.get("etag", "")
    version = (
        tag if tag.startswith('"') else answer.headers.get("last-modified", "")
    )  # a weak tag names no bytes
    _origin_file(partial).write_text(
        json.dumps({"url": url, "version": version} | ({} if total is None else {"total": total})),
        encoding="utf-8",
    )


def _forget_origin(partial: Path) -> None:
    _origin_file(partial).unlink(missing_ok=True)


# -- what a server says --------------------------------------------------------------------------


def _check_status(answer: httpx.Response, url: str, path: Path, remote: Remote) -> None:
    code = answer.status_code
    if code in _BUSY:
        raise _Again(f"the server answers {code}", _retry_after(answer))
    if code in (401, 403):
        todo = remote.refused or f"fetch it in a browser and put it at {path}"
        raise _NextPlace(f"{url} refuses access (HTTP {code}): {todo}")
    if code in (404, 410):
        raise _NextPlace(
            f"{url} is not there any more (HTTP {code}): find the file elsewhere and put it at {path}"
        )
    if code not in (200, 206):
        raise _NextPlace(f"{url} answers HTTP {code}: fetch it in a browser and put it at {path}")
    if answer.headers.get("content-type", "").startswith("text/html") and path.suffix not in (
        ".html",
        ".htm",
    ):
        raise _NextPlace(
            f"{url} answers with a web page instead of the file, as for a login or a limit on downloads: fetch it in a "
            f"browser and put it at {path}"
        )


def _retry_after(answer: httpx.Response) -> float | None:
    text = answer.headers.get("retry-after", "")
    return float(text) if text.isdecimal() else None


def _length(answer: httpx.Response) -> int | None:
    text = answer.headers.get("content-length", "")
    return int(text) if text.isdecimal() else None


def _total(answer: httpx.Response) -> int | None:
    """N of "bytes 5-9/N"; of "bytes */N" in an answer that there is nothing more."""
    text = answer.headers.get("content-range", "").rpartition("/")[2]
    return int(text) if text.isdecimal() else None


def _first(answer: httpx.Response) -> int:
    text = answer.headers.get("content-range", "").removeprefix("bytes ").partition("-")[0]
    return int(text) if text.isdecimal() else -1


# -- checks and progress -------------------------------------------------------------------------


@contextmanager
def _disk(path: Path) -> Iterator[None]:
    """A full or forbidden disk in one sentence; httpx's own errors are no OSErrors."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error.strerror or error}); what came so far is kept: make room, or choose "
            "another place with into=FOLDER"
        ) from error


@contextmanager
def _bar(name: str, total: int | None, done: int, show: bool) -> Iterator:
    """`advance(bytes)` of a bar in MB."""
    received = done
    whole = None if total is None else -(-total // MB)
    with progress_bar(name, whole, "MB", done=done // MB, show=show) as advance:

        def more(size: int) -> None:
            nonlocal received
            step = (received + size) // MB - received // MB
            received += size
            if total is not None and received == total and total % MB:
                step += 1
            if step:
                advance(step)

        yield more


def _sha256(path: Path, name: str, show: bool) -> str:
    digest = hashlib.sha256()
    size = path.stat().st_size
    with open(path, "rb") as file, _bar(f"checking {name}", size, 0, show) as advance:
        while data := file.read(_CHUNK):
            digest.update(data)
            advance(len(data))
    return digest.hexdigest()


def _broken_gzip(path: Path) -> str:
    """What is wrong with a packed file by its own checksum; "" if nothing."""
    try:
        with gzip.open(path, "rb") as file:
            while file.read(_CHUNK):
                pass
    except (OSError, EOFError, zlib.error) as error:
        return f"no whole .gz file ({error})"
    return ""

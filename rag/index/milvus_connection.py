"""A Milvus engine by its URI: a file, which a server of ours on this machine serves, a server, or a cluster.

    milvus.db                      a folder of milvus-lite's (rag/index/milvus_server.py)
    http://host:19530              a server or a cluster
    https://host:19530/database    the same with TLS, and a database of its

Every call has a time limit. An engine that does not answer is waited for, with longer and longer pauses; what the
engine says no to is a `UserError` in its own words. Credentials come from the environment alone, and nothing here
writes or prints them:

    MILVUS_TOKEN                                  "user:password", or an API key
    MILVUS_URI                                    the only engine that it is sent to, where that is set
    MILVUS_CA_PEM                                 certificates to check the server's against
    MILVUS_CLIENT_PEM, MILVUS_CLIENT_KEY          a certificate of one's own, where the server asks for one
    MILVUS_SERVER_NAME                            the name in the server's certificate, if it is not the host's
"""

import logging
import os
import threading
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from rag.errors import UserError, one_line
from rag.index import milvus_server
from rag.safe_text import say

TIMEOUT = 120.0  # seconds that a call may take
PATIENCE = 1_800.0  # seconds that an engine is waited for which answered before
AT_FIRST = 10.0  # and one that did not yet
_RATE_LIMIT = 8  # Milvus's code for it
_PAUSES = (0.1, 0.3, 1.0, 3.0, 5.0, 10.0)
_CA, _MINE, _NAME = "MILVUS_CA_PEM", ("MILVUS_CLIENT_PEM", "MILVUS_CLIENT_KEY"), "MILVUS_SERVER_NAME"
_OPTIONS = {
    "grpc.use_local_subchannel_pool": 1,  # a new client does not wait as long as the one before had to
    "grpc.keepalive_time_ms": 310_000,  # pymilvus's ten seconds are too often for servers with gRPC's usual settings
}
INSTALL = 'pip install ".[milvus]"'


class NotLoaded(Exception):
    """The engine has the collection on disk alone, as after a restart."""


def is_file(uri: str) -> bool:
    """Whether a URI is the path of a file."""
    return "://" not in uri


def checked_uri(uri: str) -> str:
    """The URI, a file's with its whole path. Raises UserError, which repeats no password, for what cannot be one."""
    if is_file(uri):
        return str(Path(uri).expanduser().resolve())
    try:
        parts = urlsplit(uri)
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    if parts.username is not None or parts.password is not None:
        raise UserError(
            f"the URI of {parts.hostname or 'the engine'} holds credentials, which would stand in runs and logs: "
            "give it without them, and set MILVUS_TOKEN=user:password in the environment"
        )
    if (
        parts.scheme not in ("http", "https")
        or not parts.hostname
        or parts.query
        or parts.fragment
        or port == 0
    ):
        raise UserError(
            f"{uri} is no address of a Milvus engine: give a file, http://HOST:PORT or https://HOST:PORT"
        )
    return uri.rstrip("/")


class Connection:
    """Calls of `pymilvus.MilvusClient` by their names, with time limits, retries and errors in a sentence.

    uri: as above. The first call connects; a process that was forked connects anew. `generation` grows whenever the
    engine was lost and found again.
    """

    def __init__(self, uri: str, timeout: float = TIMEOUT, patience: float = PATIENCE):
        self.uri = checked_uri(uri)
        self.timeout = timeout
        self.patience = patience
        self.generation = 0
        self._client: Any = None
        self._lease: milvus_server.Lease | None = None  # what keeps a server of ours running
        self._process = 0
        self._met = False
        self._lock = threading.Lock()

    def call(self, name: str, *args: Any, **settings: Any) -> Any:
        """`MilvusClient.name(*args, **settings)`. Raises NotLoaded, and UserError for anything else that fails."""
        with self._lock:
            return self._call(name, args, settings)

    def _call(self, name: str, args: tuple[Any, ...], settings: dict[str, Any]) -> Any:
        patience = self.patience if self._met else min(AT_FIRST, self.patience)
        began, tries, told = time.monotonic(), 0, False
        while True:
            try:
                client = self._connected()
                result = getattr(client, name)(*args, **{"timeout": self.timeout} | settings)
            except UserError:
                raise
            except Exception as error:
                waited = time.monotonic() - began
                if not _is_lost(error):
                    self._found_again(tries, waited if told else 0)
                    raise self._refusal(name, error) from error
                if waited >= patience:
                    raise self._absence(waited) from error
                if self._met and not told and waited > 1:
                    told = True
                    say(f"{self.uri} does not answer; waiting up to {patience / 60:,.0f} minutes for it")
                time.sleep(min(_PAUSES[min(tries, len(_PAUSES) - 1)], patience - waited))
                tries += 1
                self.close()
                continue
            self._found_again(tries, time.monotonic() - began if told else 0)
            self._met = True
            return result

    def _found_again(self, tries: int, seconds: float) -> None:
        self.generation += tries > 0
        if seconds:
            say(f"{self.uri} answers again after {seconds:,.0f} s")

    def _connected(self) -> Any:
        if self._client is None or self._process != os.getpid():
            uri, self._lease = self.uri, None  # that of the process it was forked from is that one's
            if is_file(uri):
                _check_installed(uri)
                uri, self._lease = milvus_server.address(Path(uri))
            self._client = _open(uri, min(self.timeout, AT_FIRST))
            self._process = os.getpid()
        return self._client

    def close(self) -> None:
        """Forget the connection; the next call makes another."""
        client, self._client = self._client, None
        if client is not None and self._process == os.getpid():
            client.close()
        if self._lease is not None:
            self._lease.close()
        self._lease = None

    def _absence(self, waited: float) -> UserError:
        return UserError(
            f"{self.uri} did not answer within {waited:,.0f} s: start the engine, or give the URI of one that is "
            "running (retriever.uri=…; where an index is built, index.type.uri=…)"
        )

    def _refusal(self, name: str, error: Exception) -> Exception:
        if _status(error) in ("UNAUTHENTICATED", "PERMISSION_DENIED"):
            given = (
                "the MILVUS_TOKEN of the environment" if _token(self.uri) else "a client without MILVUS_TOKEN"
            )
            if os.environ.get("MILVUS_TOKEN") and not _token(self.uri):
                given += f" (it is for {os.environ['MILVUS_URI']} alone, by MILVUS_URI)"
            return UserError(
                f"{self.uri} refused {given}: set MILVUS_TOKEN=user:password (or an API key) of an account that may "
                f"do this ({name.replace('_', ' ')})"
            )
        if getattr(error, "code", None) == 101 or "not loaded" in str(error):
            return NotLoaded(name)
        message = one_line(str(getattr(error, "message", "") or error))
        return UserError(f"{self.uri} could not {name.replace('_', ' ')}: {message}")

    def __reduce__(self):  # another process connects for itself
        return Connection, (self.uri, self.timeout, self.patience)


def _check_installed(uri: str) -> None:
    if find_spec("pymilvus") is None:
        raise UserError(f"{uri} is a Milvus engine, and pymilvus is not installed: {INSTALL}")


def _open(uri: str, timeout: float) -> Any:
    """A client of pymilvus, whose own log is silent."""
    _check_installed(uri)
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # what fails is told here
    from pymilvus import MilvusClient

    logging.getLogger("pymilvus").setLevel(logging.CRITICAL + 1)
    return MilvusClient(
        uri, token=_token(uri), timeout=timeout, dedicated=True, grpc_options=_OPTIONS, **_tls(uri)
    )


def _token(uri: str) -> str:
    """The environment's token, if it is for this engine: an index of somebody else's names an engine too."""
    mine = os.environ.get("MILVUS_URI")
    if mine and urlsplit(mine).netloc.rpartition("@")[2] != urlsplit(uri).netloc:
        return ""
    return os.environ.get("MILVUS_TOKEN", "")


def _tls(uri: str) -> dict[str, str]:
    """What the environment says of certificates, by pymilvus's names."""
    given = {name: value for name in (_CA, *_MINE, _NAME) if (value := os.environ.get(name))}
    if not given:
        return {}
    first = next(iter(given))
    if uri.startswith("http://"):
        raise UserError(f"{uri} is without TLS, and {first} is set: give https://…, or unset it")
    for name, file in given.items():
        if name != _NAME and not Path(file).is_file():
            raise UserError(f"{name} names {file}, which does not exist: give a PEM file")
    names = {_CA: "server_pem_path", _NAME: "server_name"}
    if given.keys() & set(_MINE):
        if missing := [name for name in (_CA, *_MINE) if name not in given]:
            raise UserError(
                f"{first} is set and {missing[0]} is not: a certificate of one's own takes all three files"
            )
        names |= {_CA: "ca_pem_path", _MINE[0]: "client_pem_path", _MINE[1]: "client_key_path"}
    return {names[name]: value for name, value in given.items()}


def _status(error: BaseException) -> str:
    """The name of gRPC's status that an error came from, "" where it came from none."""
    for each in _behind(error):
        code = getattr(each, "code", None)
        status = code() if callable(code) else code
        if isinstance(name := getattr(status, "name", None), str):
            return name
    return ""


def _behind(error: BaseException) -> list[BaseException]:
    """An error, what it was raised from and what was handled meanwhile: pymilvus raises its errors from themselves."""
    found: list[BaseException] = []
    left: list[BaseException | None] = [error]
    while left:
        each = left.pop(0)
        if each is not None and not any(each is other for other in found):
            found.append(each)
            left += [each.__cause__, each.__context__]
    return found


def _is_lost(error: BaseException) -> bool:
    """Whether an error says that the engine is gone, starting or busy, and not that it says no."""
    if (status := _status(error)) in ("UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED"):
        return True
    if status == "RESOURCE_EXHAUSTED":  # busy, or sent a message that it will never take
        return "larger than max" not in f"{error} {error.__cause__} {error.__context__}"
    if status in ("UNAUTHENTICATED", "PERMISSION_DENIED", "UNIMPLEMENTED", "INVALID_ARGUMENT"):
        return False
    # a channel that was closed by another thread, and what the engine itself calls passing
    return (
        isinstance(error, ValueError)
        and "closed channel" in str(error)
        or (getattr(error, "code", None) == _RATE_LIMIT or bool(getattr(error, "retriable", False)))
    )

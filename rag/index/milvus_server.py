"""One server for a file of milvus-lite, which refuses a second process: all processes of a machine share it.

    process ──▶ 127.0.0.1:port ──▶ python -m rag.index.milvus_server FILE ──▶ FILE/

Whoever needs the file first starts the server; it ends by itself when nobody is left. It listens on the loopback
interface alone. Three hidden files beside the file say who is there; the system drops their locks with the process,
however that ends:

    .FILE.server     locked by the server while it serves; holds its port and machine
    .FILE.clients    locked, together, by all that use it
    .FILE.starting   locked by whoever looks for the server, or starts it
"""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rag.errors import UserError
from rag.files import hidden_beside, lock_file

fcntl: Any
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

HOST = "127.0.0.1"
STARTING = 120.0  # seconds, on a machine that does much else
ALONE = 3.0  # seconds that it stays without anybody


def address(file: Path) -> tuple[str, "Lease"]:
    """http://127.0.0.1:PORT of the server of `file`, which is started unless it runs, and what keeps it there until it
    is closed.

    Raises UserError where that cannot be, or the file is served on another machine.
    """
    if fcntl is None:
        raise UserError(
            f"{file} cannot be shared by processes on this system: give the URI of a server, http://HOST:PORT"
        )
    if find_spec("milvus_lite") is None:
        raise UserError(f'{file} is a file of milvus-lite, which is not installed: pip install ".[milvus]"')
    file = file.expanduser().resolve()
    if file.is_file():
        raise UserError(
            f"{file} is no database of this milvus-lite, which keeps a folder there: give another uri"
        )
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with lock_file(hidden_beside(file, "starting")):
            lease = Lease(hidden_beside(file, "clients"))
            if (port := _running(file)) is None:
                port = _start(file)
    except OSError as error:
        raise UserError(f"{file} cannot be opened ({error.strerror or error}): choose another uri") from error
    return f"http://{HOST}:{port}", lease


class Lease:
    """Keeps a server running until it is closed, or the process ends."""

    def __init__(self, path: Path):
        self._file: int | None = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        fcntl.flock(self._file, fcntl.LOCK_SH)  # waits for a server that is about to end

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)
        self._file = None

    def __del__(self) -> None:
        self.close()


def _running(file: Path) -> int | None:
    """The port of the server that holds the lock; None where nobody does."""
    path = hidden_beside(file, "server")
    if _is_free(path):
        return None
    began = time.monotonic()
    while time.monotonic() - began < STARTING:
        try:
            told = json.loads(path.read_text())
        except (OSError, ValueError):  # it is writing it
            time.sleep(0.05)
            continue
        if told["machine"] != socket.gethostname():
            raise UserError(
                f"{file} is in use on {told['machine']}, and a file serves the processes of one machine: start a "
                "server for several machines, and give retriever.uri=http://…"
            )
        return told["port"]
    raise UserError(f"the server of {file} does not say its port in {path}: end that process, and try again")


def _is_free(path: Path) -> bool:
    with open(path, "a") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def _start(file: Path) -> int:
    """Start the server, which leaves this process's session: Ctrl-C ends a run that still writes, and it after that."""
    log = hidden_beside(file, "log")
    command = [sys.executable, "-m", "rag.index.milvus_server", str(file)]
    try:
        with open(log, "w") as output:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=Path(__file__).parents[2],
                timeout=STARTING,
            )
    except subprocess.TimeoutExpired:
        raise UserError(f"the server of {file} did not start within {STARTING:.0f} s (see {log})") from None
    if (port := _running(file)) is not None and done.returncode == 0:
        return port
    said = log.read_text(errors="replace")
    if "DataDirLockedError" in said:
        raise UserError(f"{file} is open in another program: close it there, or give another uri")
    why = next((line for line in reversed(said.splitlines()) if line.strip()), "it ended without a word")
    raise UserError(f"milvus-lite cannot open {file} ({why.strip()}): restore it, or give another uri")


# ---------------------------------------------------------------------------------- the server itself


def start(file: Path) -> int:
    """Have a child serve the file, and wait until it does; the exit code."""
    told, tell = os.pipe()
    if os.fork():
        os.close(tell)
        return 0 if os.read(told, 1) else 1
    os.setsid()
    os.close(told)
    serve(file, lambda: os.write(tell, b"1"))
    return 0


def serve(file: Path, ready: Callable[[], Any]) -> None:
    """Serve a file until nobody uses it. ready: called once it is served."""
    from milvus_lite.adapter.grpc.server import start_server_in_thread

    server, database, port = start_server_in_thread(str(file), host=HOST, port=0)
    with open(hidden_beside(file, "server"), "a+") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        held.truncate(0)
        held.write(json.dumps({"port": port, "machine": socket.gethostname(), "process": os.getpid()}))
        held.flush()
        ready()
        with _nobody_left(hidden_beside(file, "clients")):
            server.stop(grace=5).wait()
            database.close()
            held.truncate(0)


@contextmanager
def _nobody_left(path: Path) -> Iterator[None]:
    """Wait until nobody has held the lock for a while, and keep others waiting from then on."""
    alone = time.monotonic()
    with open(path, "a") as clients:
        while True:
            try:
                fcntl.flock(clients, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                alone = time.monotonic()
            else:
                if time.monotonic() - alone >= ALONE:
                    yield
                    return
                fcntl.flock(clients, fcntl.LOCK_UN)
            time.sleep(0.2)


if __name__ == "__main__":
    sys.exit(start(Path(sys.argv[1])))

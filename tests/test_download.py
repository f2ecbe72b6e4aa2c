"""The downloader against a server on this machine that behaves as badly as real ones do."""

import gzip
import hashlib
import importlib.util
import io
import json
import os
import re
import socket
import subprocess
import sys
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub.constants
import pytest
from omegaconf import OmegaConf

from rag.compose import CONFIGS, compose_config
from rag.download import __main__ as download
from rag.download import fetch, sources
from rag.download.fetch import Fetcher, Remote, partial_of
from rag.download.squad import open_domain
from rag.errors import UserError
from rag.index.readers import read_passages
from rag.runs import PROJECT
from rag.tasks.qa import read_examples

DATA = bytes(range(256)) * 8000  # 2,048,000 bytes: more than one block
SHA256 = hashlib.sha256(DATA).hexdigest()


class Server:
    """Serves `files` on 127.0.0.1. `plan` holds, for a path, how the next requests for it are answered:

    a status number, "break" (half of what is left is sent), "short" (the whole file, announced as longer), "no range"
    (from the beginning, whatever was asked), an address (it is sent on to there), "page" (a web page); after the plan:
    as a good server does.
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.plan: dict[str, list] = {}
        self.headers: dict[str, str] = {}  # further ones of every answer
        self.links: dict[str, str] = {}  # a path's next page
        self.asked: list[tuple[str, str | None, str | None]] = []  # path, Range, Authorization
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                owner.answer(self)

            def log_message(self, *_: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        asked = request.headers.get("Range")
        self.asked.append((request.path, asked, request.headers.get("Authorization")))
        plan = self.plan.get(request.path, [])
        how = plan.pop(0) if plan else None
        content = self.files.get(request.path)
        if content is None and how is None:
            how = 404
        if isinstance(how, int):
            request.send_response(how)
            request.send_header("Retry-After", "0")
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        if isinstance(how, str) and how.startswith("http"):
            request.send_response(302)
            request.send_header("Location", how)
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        if how == "page":
            content = b"<html>log in</html>"
        assert content is not None
        start = 0
        match = re.fullmatch(r"bytes=(\d+)-", asked or "")
        if (
            match
            and how != "no range"
            and request.headers.get("If-Range") in (None, self.headers.get("ETag"))
        ):
            start = int(match[1])
            if start >= len(content):
                request.send_response(416)
                request.send_header("Content-Range", f"bytes */{len(content)}")
                request.send_header("Content-Length", "0")
                request.end_headers()
                return
            request.send_response(206)
            request.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        else:
            request.send_response(200)
        body = content[start:]
        request.send_header("Content-Length", str(len(body) + (7 if how == "short" else 0)))
        request.send_header("Content-Type", "text/html" if how == "page" else "application/octet-stream")
        if request.path in self.links:
            request.send_header("Link", self.links[request.path])
        for name, value in self.headers.items():
            request.send_header(name, value)
        request.end_headers()
        with suppress(ConnectionError):  # it has heard enough
            request.wfile.write(body[: len(body) // 2] if how == "break" else body)


@pytest.fixture
def server() -> Iterator[Server]:
    one = Server()
    one.files["/data.bin"] = DATA
    yield one
    one.http.shutdown()
    one.http.server_close()


@pytest.fixture
def fetcher() -> Iterator[Fetcher]:
    with Fetcher(wait=0.0, show=False) as one:
        yield one


def left(folder: Path) -> list[str]:
    """The files of a folder, without the locks."""
    return sorted(
        file.name for file in folder.rglob("*") if file.is_file() and not file.name.endswith(".lock")
    )


def refusal(call, *arguments) -> str:
    with pytest.raises(UserError) as caught:
        call(*arguments)
    return str(caught.value)


def remote(server: Server, size: int | None = len(DATA), sha256: str | None = SHA256, **more) -> Remote:
    return Remote((f"{server.url}/data.bin",), size, sha256, **more)


# -- one file ------------------------------------------------------------------------------------


def test_a_file_is_fetched_once(server, fetcher, tmp_path):
    path = tmp_path / "new" / "data.bin"
    assert fetcher.fetch(remote(server), path) and path.read_bytes() == DATA
    assert left(tmp_path) == ["data.bin"]
    assert not fetcher.fetch(remote(server), path)
    assert len(server.asked) == 1


@pytest.mark.parametrize("known", [True, False])
def test_what_broke_off_is_gone_on_from(server, fetcher, tmp_path, known):
    """Three times in the middle, and nothing is received twice."""
    server.plan["/data.bin"] = ["break", "break", "break"]
    one = remote(server) if known else remote(server, None, None)
    fetcher.fetch(one, tmp_path / "data.bin")
    assert (tmp_path / "data.bin").read_bytes() == DATA
    size = len(DATA)
    begun = [None, size // 2, size * 3 // 4, size * 7 // 8]
    assert [asked for _, asked, _ in server.asked] == [None if n is None else f"bytes={n}-" for n in begun]


def test_a_later_command_goes_on_too(server, tmp_path):
    server.plan["/data.bin"] = ["break", *[503] * 5]
    with Fetcher(0.0, show=False) as first:
        sentence = refusal(first.fetch, remote(server, None, None), tmp_path / "data.bin")
    assert "failed 5 times in a row (the server answers 503): rerun the same command to resume" in sentence
    assert partial_of(tmp_path / "data.bin").stat().st_size == len(DATA) // 2
    assert not (tmp_path / "data.bin").exists()
    with Fetcher(0.0, show=False) as second:
        second.fetch(remote(server, None, None), tmp_path / "data.bin")
    assert (tmp_path / "data.bin").read_bytes() == DATA and left(tmp_path) == ["data.bin"]
    assert server.asked[-1][1] == f"bytes={len(DATA) // 2}-"


def test_a_server_that_ignores_ranges_starts_over(server, fetcher, tmp_path):
    server.plan["/data.bin"] = ["break", "no range"]
    fetcher.fetch(remote(server), tmp_path / "data.bin")
    assert (tmp_path / "data.bin").read_bytes() == DATA


def test_a_file_that_changed_in_between_starts_over(server, tmp_path):
    """Of unknown size and checksum: the server's tag tells."""
    server.headers["ETag"] = '"one"'
    server.plan["/data.bin"] = ["break", *[503] * 5]
    with Fetcher(0.0, show=False) as first:
        refusal(first.fetch, remote(server, None, None), tmp_path / "data.bin")
    server.headers["ETag"] = '"two"'
    server.files["/data.bin"] = DATA[::-1]
    with Fetcher(0.0, show=False) as second:
        second.fetch(remote(server, None, None), tmp_path / "data.bin")
    assert (tmp_path / "data.bin").read_bytes() == DATA[::-1]


def test_busy_servers_are_asked_again(server, fetcher, tmp_path):
    server.plan["/data.bin"] = [503, 429, 500]
    fetcher.fetch(remote(server), tmp_path / "data.bin")
    assert (tmp_path / "data.bin").read_bytes() == DATA


def test_a_length_that_was_announced_too_long(server, fetcher, tmp_path):
    """The connection ends early, and the next request learns that there is nothing more."""
    server.plan["/data.bin"] = ["short"]
    fetcher.fetch(remote(server, None, None), tmp_path / "data.bin")
    assert (tmp_path / "data.bin").read_bytes() == DATA
    assert server.asked[-1][1] == f"bytes={len(DATA)}-"


def test_another_size_than_the_known_one(server, fetcher, tmp_path):
    sentence = refusal(fetcher.fetch, remote(server, size=len(DATA) + 1), tmp_path / "data.bin")
    assert f"/data.bin offers {len(DATA):,} bytes where {len(DATA) + 1:,} are expected" in sentence
    assert left(tmp_path) == []


def test_another_checksum_than_the_known_one(server, fetcher, tmp_path):
    server.files["/data.bin"] = DATA[:-1] + b"!"
    sentence = refusal(fetcher.fetch, remote(server), tmp_path / "data.bin")
    assert re.search(
        r"gave a file with SHA-256 \w{12}… where \w{12}… is expected, which was discarded", sentence
    )
    assert left(tmp_path) == []
    server.files["/data.bin"] = DATA  # "try again"
    fetcher.fetch(remote(server), tmp_path / "data.bin")
    assert (tmp_path / "data.bin").read_bytes() == DATA


def test_a_packed_file_is_checked_by_its_own_checksum(server, fetcher, tmp_path):
    packed = bytearray(gzip.compress(DATA))
    server.files["/q.gz"] = bytes(packed)
    fetcher.fetch(Remote((f"{server.url}/q.gz",)), tmp_path / "good.gz")
    packed[len(packed) // 2] ^= 1
    server.files["/q.gz"] = bytes(packed)
    sentence = refusal(fetcher.fetch, Remote((f"{server.url}/q.gz",)), tmp_path / "bad.gz")
    assert "gave no whole .gz file (" in sentence and left(tmp_path) == ["good.gz"]


@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        (404, "is not there any more (HTTP 404): find the file elsewhere and put it at {path}"),
        (403, "refuses access (HTTP 403): request access at the page"),
        (401, "refuses access (HTTP 401): request access at the page"),
        (418, "answers HTTP 418: fetch it in a browser and put it at {path}"),
        ("page", "answers with a web page instead of the file"),
    ],
)
def test_what_is_not_given_is_told(server, fetcher, tmp_path, how, sentence):
    server.plan["/data.bin"] = [how]
    path = tmp_path / "data.bin"
    told = refusal(fetcher.fetch, remote(server, refused="request access at the page"), path)
    assert sentence.format(path=path) in told and left(tmp_path) == []
    path.write_bytes(DATA)  # "put it at …"
    assert not fetcher.fetch(remote(server), path)


def test_another_place_is_tried(server, fetcher, tmp_path):
    server.files["/wrong.bin"] = DATA[::-1]
    urls = tuple(f"{server.url}/{name}.bin" for name in ("none", "wrong", "data"))
    fetcher.fetch(Remote(urls, len(DATA), SHA256), tmp_path / "data.bin")
    assert (tmp_path / "data.bin").read_bytes() == DATA


def test_a_login_is_not_told_to_where_one_is_sent_on(server, fetcher, tmp_path):
    """The hub sends on to other machines; resuming starts at the hub again."""
    store = Server()
    store.files["/data.bin"] = DATA
    store.plan["/data.bin"] = ["break"]
    server.plan["/data.bin"] = [f"{store.url}/data.bin"] * 2
    fetcher.fetch(remote(server, headers={"Authorization": "Bearer hf_test"}), tmp_path / "data.bin")
    assert (tmp_path / "data.bin").read_bytes() == DATA
    assert [login for *_, login in server.asked] == ["Bearer hf_test"] * 2
    assert [(asked, login) for _, asked, login in store.asked] == [
        (None, None),
        (f"bytes={len(DATA) // 2}-", None),
    ]
    store.http.shutdown()
    store.http.server_close()


def test_no_network_is_one_sentence(fetcher, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: connections are refused
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/data.bin"
        sentence = refusal(fetcher.fetch, Remote((url,)), tmp_path / "data.bin")
    assert sentence.startswith("data.bin was not fetched: 127.0.0.1 cannot be reached (")
    assert sentence.endswith(
        f"check the network connection, or download {url} on another machine and put it at {tmp_path / 'data.bin'}"
    )


def test_with_the_library_of_the_other_huggingface_hub(server, tmp_path, monkeypatch):
    """huggingface_hub 1 brings httpx along and 2 httpx2; both break off and resume alike."""
    httpx = pytest.importorskip("httpx")
    monkeypatch.setitem(sys.modules, "httpx2", None)
    spec = importlib.util.spec_from_file_location("fetch_with_httpx", fetch.__file__)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    assert module.httpx is httpx
    server.plan["/data.bin"] = ["break", 503, "break"]
    with module.Fetcher(0.0, show=False) as other:
        other.fetch(module.Remote((f"{server.url}/data.bin",), len(DATA), SHA256), tmp_path / "data.bin")
    assert (tmp_path / "data.bin").read_bytes() == DATA
    assert server.asked[-1][1] == f"bytes={len(DATA) * 3 // 4}-"


def test_a_file_of_another_size_is_not_replaced(server, fetcher, tmp_path):
    path = tmp_path / "data.bin"
    path.write_bytes(b"mine")
    sentence = refusal(fetcher.fetch, remote(server), path)
    assert (
        sentence
        == f"{path} is there with 4 bytes, {len(DATA):,} are expected: remove it, and it is fetched again"
    )
    assert path.read_bytes() == b"mine" and not server.asked
    path.unlink()
    assert fetcher.fetch(remote(server), path)


def test_the_room_on_the_disk_is_looked_at_first(server, fetcher, tmp_path, monkeypatch):
    monkeypatch.setattr(fetch.shutil, "disk_usage", lambda _: SimpleNamespace(free=1_000_000))
    sentence = refusal(fetcher.fetch, remote(server), tmp_path / "data.bin")
    assert f"2 MB are to be fetched and {tmp_path} has 1 MB free" in sentence and left(tmp_path) == []


def test_a_place_that_cannot_be_written(server, fetcher, tmp_path):
    (tmp_path / "file").write_text("")
    assert "cannot be written" in refusal(fetcher.fetch, remote(server), tmp_path / "file" / "data.bin")


def test_progress_is_counted_in_megabytes(server, tmp_path, monkeypatch):
    report = tmp_path / "report.json"
    monkeypatch.setenv("RAG_PROGRESS", str(report))
    with Fetcher(0.0) as shown:
        shown.fetch(remote(server, None, None), tmp_path / "data.bin")
    assert json.loads(report.read_text()) == {"what": "data.bin", "done": 3, "total": 3}


# -- the command ---------------------------------------------------------------------------------


def zipped(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return out.getvalue()


def tarred(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


@pytest.mark.parametrize(("suffix", "pack"), [(".zip", zipped), (".tar.gz", tarred)])
def test_the_wanted_files_of_an_archive_stay(server, tmp_path, monkeypatch, capsys, suffix, pack):
    content = pack({"./top/qa/a.json": b"[1]", "top/other": DATA, "top/qa/b.json": b"[2]"})
    server.files["/x"] = content
    archive = sources.Archive(
        Remote((f"{server.url}/x",), len(content)),
        f"x/x{suffix}",
        {"qa/a.json": "x/a.json", "qa/b.json": "x/b.json"},
        6,
    )
    monkeypatch.setitem(download.SOURCES, "x", sources.Source("an archive", "none", archive=archive))
    download.download(["x"], tmp_path, wait=0.0)
    assert left(tmp_path) == ["a.json", "b.json"] and (tmp_path / "x/b.json").read_bytes() == b"[2]"
    download.download(["x"], tmp_path, wait=0.0)
    assert len(server.asked) == 1 and capsys.readouterr().out.count("was there") == 2
    (tmp_path / "x/a.json").unlink()
    server.files["/x"] = pack({"nothing": b"?" * 9})
    archive = sources.Archive(Remote((f"{server.url}/x",)), f"x/x{suffix}", {"qa/a.json": "x/a.json"}, 3)
    monkeypatch.setitem(download.SOURCES, "x", sources.Source("an archive", "none", archive=archive))
    assert "holds no qa/a.json" in refusal(download.download, ["x"], tmp_path, 0.0)


def test_a_damaged_archive_is_told_and_leaves_nothing(server, tmp_path, monkeypatch):
    content = bytearray(zipped({"a.json": DATA}))
    content[len(content) // 2] ^= 1
    server.files["/x"] = bytes(content)
    archive = sources.Archive(Remote((f"{server.url}/x",)), "x.zip", {"a.json": "a.json"}, 6)
    monkeypatch.setitem(download.SOURCES, "x", sources.Source("an archive", "none", archive=archive))
    sentence = refusal(download.download, ["x"], tmp_path, 0.0)
    assert sentence.startswith(f"{tmp_path}/x.zip is not a whole archive (") and left(tmp_path) == ["x.zip"]
    (tmp_path / "x.zip").unlink()  # "remove it, and it is fetched again"
    server.files["/x"] = zipped({"a.json": DATA})
    download.download(["x"], tmp_path, 0.0)
    assert (tmp_path / "a.json").read_bytes() == DATA


def test_names_and_settings(tmp_path):
    assert download.parse(["nq", "fever3", "natural_questions"]) == (["nq", "fever"], PROJECT / "data")
    assert download.parse([f"into={tmp_path}", "wikipedia"]) == (["psgs_w100"], tmp_path)
    for wrong, sentence in (
        (["triviaqa"], "did you mean trivia_qa?"),
        (["--into", "x"], "--into is not a setting: the only one is into=FOLDER"),
        ([f"into={tmp_path}"], "name what is to be fetched"),
        (["world_leaders"], "is not public"),
    ):
        assert sentence in refusal(download.parse, wrong)


def tree(files: dict[str, bytes]) -> bytes:
    """What the hub's interface says of a repository's files."""
    rows = [
        {
            "type": "file",
            "oid": "0" * 40,
            "size": len(data),
            "path": path,
            "lfs": {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134},
        }
        for path, data in files.items()
    ]
    return json.dumps([{"type": "directory", "oid": "0" * 40, "size": 0, "path": "data"}, *rows]).encode()


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    clean = {key: value for key, value in os.environ.items() if key not in ("HF_HUB_OFFLINE", "HF_TOKEN")}
    return subprocess.run(
        [sys.executable, "-m", "rag.download", *arguments],
        env=clean | environment,
        capture_output=True,
        text=True,
        timeout=60,
        cwd=PROJECT,
    )


def test_files_of_the_hub(server, tmp_path, monkeypatch):
    """Two pages of a listing; what is not of the wanted name is left out."""
    path = "index/psgs_w100.nq.HNSW128_SQ8-IP-train.faiss"
    listing = "/api/datasets/facebook/wiki_dpr/tree/main/index"
    server.files[f"{listing}?recursive=true"] = tree(
        {"index/psgs_w100.multiset.HNSW128_SQ8-IP-train.faiss": b"?"}
    )
    server.plan[f"{listing}?recursive=true"] = [503]
    server.files[f"/datasets/facebook/wiki_dpr/resolve/main/{path}"] = DATA
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.url)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    page = f"{server.url}/datasets/facebook/wiki_dpr"
    begin = "index/psgs_w100.nq.HNSW128_SQ8"
    sentence = refusal(download.download, ["wiki_dpr_hnsw_sq8"], tmp_path, 0.0)
    assert sentence == f"{page} has no {begin}*.faiss any more: look there for where it is now"
    server.links[f"{listing}?recursive=true"] = f'<{server.url}{listing}?cursor=2>; rel="next"'
    server.files[f"{listing}?cursor=2"] = tree({path: DATA})
    download.download(["wiki_dpr_hnsw_sq8"], tmp_path, 0.0)
    assert (tmp_path / "wiki_dpr" / path).read_bytes() == DATA and len(left(tmp_path)) == 1
    server.files[f"{listing}?recursive=true"] = b"<html>"
    assert "does not answer as a hub does" in refusal(download.download, ["wiki_dpr_hnsw_sq8"], tmp_path, 0.0)


@pytest.mark.slow
def test_files_of_the_hub_at_hf_endpoint(server, tmp_path):
    """As the real command: the folder is listed, all of its files come, with the token, resumed and checked."""
    names = [f"data/psgs_w100/nq/train-{n:05d}-of-00002.parquet" for n in range(2)]
    files = {name: DATA + bytes([n]) for n, name in enumerate(names)} | {"data/psgs_w100/nq/x.faiss": b"x"}
    listing = "/api/datasets/facebook/wiki_dpr/tree/main/data/psgs_w100/nq?recursive=true"
    server.files[listing] = tree(files)
    server.plan[listing] = [503]
    for name in names:
        server.files[f"/datasets/facebook/wiki_dpr/resolve/main/{name}"] = files[name]
    server.plan[f"/datasets/facebook/wiki_dpr/resolve/main/{names[1]}"] = ["break"]
    hub = {"HF_ENDPOINT": server.url, "HF_TOKEN": "hf_test", "HF_HOME": str(tmp_path / "home")}
    done = run("wiki_dpr", f"into={tmp_path / 'data'}", **hub)
    assert done.returncode == 0, done.stderr
    for name in names:
        assert (tmp_path / "data" / "wiki_dpr" / name).read_bytes() == files[name]
    assert len(left(tmp_path / "data")) == 2
    assert {authorization for *_, authorization in server.asked} == {"Bearer hf_test"}
    assert "licence: CC BY-NC 4.0" in done.stdout and f"paths.data={tmp_path / 'data'}" in done.stdout

    server.files[f"/datasets/facebook/wiki_dpr/resolve/main/{names[0]}"] = b"?" * len(files[names[0]])
    (tmp_path / "data" / "wiki_dpr" / names[0]).unlink()
    wrong = run("wiki_dpr", f"into={tmp_path / 'data'}", **hub)
    assert wrong.returncode == 2 and "with SHA-256" in wrong.stderr and "Traceback" not in wrong.stderr
    server.plan[listing] = [403]
    gated = run("wiki_dpr", f"into={tmp_path / 'data'}", **hub)
    page = f"{server.url}/datasets/facebook/wiki_dpr"
    assert (
        gated.returncode == 2
        and f"request access at {page}, then log in with `hf auth login`" in gated.stderr
    )
    offline = run("wiki_dpr", f"into={tmp_path / 'data'}", **hub, HF_HUB_OFFLINE="1")
    assert offline.returncode == 2 and "HF_HUB_OFFLINE is set" in offline.stderr


def test_the_help_and_the_list_and_no_network(tmp_path):
    assert "python -m rag.download nq psgs_w100" in run("--help").stdout
    listed = run("list").stdout
    assert all(f"{name}" in listed for name in sources.SOURCES) and "licence" in listed
    lost = run("fever", f"into={tmp_path}", HTTPS_PROXY="http://127.0.0.1:9", HTTP_PROXY="http://127.0.0.1:9")
    assert lost.returncode == 2 and lost.stderr.count("\n") == 1 and "cannot be reached" in lost.stderr


# -- the files land where the configs look for them ----------------------------------------------


def looked_for(node: object) -> list[str]:
    """The paths below the data folder in a config, but for what the project makes itself."""
    if isinstance(node, dict):
        return [path for value in node.values() for path in looked_for(value)]
    if isinstance(node, list):
        return [path for value in node for path in looked_for(value)]
    return [node.removeprefix("DATA/")] if isinstance(node, str) and node.startswith("DATA/") else []


def resolved(override: str, group: str) -> list[str]:
    cfg = compose_config("train", ["experiment=null", override, "paths.data=DATA", "name=x"])
    return looked_for(OmegaConf.to_container(cfg[group], resolve=True, throw_on_missing=False))


@pytest.mark.parametrize(
    "file",
    [
        *(file for file in sorted((CONFIGS / "task").glob("*.yaml")) if "paths.data}/" in file.read_text()),
        CONFIGS / "corpus" / "wikipedia.yaml",
        CONFIGS / "corpus" / "wiki_dpr.yaml",
        CONFIGS / "index" / "wiki_dpr_hnsw_sq8.yaml",
        CONFIGS / "index" / "wiki_dpr_ivf_pq.yaml",
    ],
    ids=lambda file: file.stem,
)
def test_each_config_names_the_command_that_puts_its_files_there(file):
    if file.stem == "miniwiki":
        return  # made by python -m rag.miniwiki
    names = re.findall(r"python -m rag\.download ((?:\w+ ?)+)", file.read_text())
    assert names, f"{file} names no command"
    offered: set[str] = set()
    for name in " ".join(names).split():
        source = sources.SOURCES[name]
        offered |= {str(path.relative_to("DATA")) for path in download.places(source, Path("DATA"))}
        if source.hub is not None:
            offered.add(f"{source.hub.folder}/{source.hub.begin}")
    wanted = resolved(f"{file.parent.name}={file.stem}", file.parent.name)
    assert wanted
    for path in wanted:
        assert path in offered or any(
            f"{path}/".startswith(one) or path.startswith(one) for one in offered
        ), path


def test_the_experiment_of_dprs_own_training_finds_its_files():
    cfg = compose_config("train", ["experiment=dpr/nq", "paths.data=DATA"])
    files = [cfg.datamodule.questions, cfg.datamodule.dev]
    assert files == [str(path) for path in download.places(sources.SOURCES["dpr_nq"], Path("DATA"))]


def test_what_is_known_of_the_files_is_well_formed():
    for source in sources.SOURCES.values():
        assert sum(map(bool, (source.files, source.archive, source.hub))) == 1 and source.licence
        for one in [*source.files.values(), *([source.archive.remote] if source.archive else [])]:
            assert all(url.startswith("http") for url in one.urls)
            assert one.sha256 is None or re.fullmatch(r"[0-9a-f]{64}", one.sha256)


def squad_rows() -> tuple[list[dict], list[dict]]:
    long = " ".join(f"word{i}" for i in range(150))
    train = [
        {"id": "a", "title": "New_York", "context": f"{long}  the end.", "question": " what is last? ",
         "answers": {"text": ["the end"], "answer_start": [len(long) + 2]}},
        {"id": "b", "title": "New_York", "context": f"{long}  the end.", "question": "and first?",
         "answers": {"text": ["word0"], "answer_start": [0]}},
    ]  # fmt: skip
    dev = [
        {"id": "c", "title": "Paris", "context": "On the Seine.", "question": "which river?",
         "answers": {"text": ["Seine", "the Seine", "Seine"], "answer_start": [7, 3, 7]}},
        {"id": "d", "title": "Paris", "context": "On the Seine.", "question": "none?",
         "answers": {"text": [], "answer_start": []}},
    ]  # fmt: skip
    return train, dev


def test_squad_becomes_open_domain_questions(server, tmp_path, monkeypatch, capsys):
    """The hub's files in their layout; paragraphs of 152 words are two passages, and the gold one holds the answer."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    listing = "/api/datasets/rajpurkar/squad/tree/main/plain_text?recursive=true"
    described = []
    for split, rows in zip(("train", "validation"), squad_rows(), strict=True):
        out = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows), out)
        name = f"plain_text/{split}-00000-of-00001.parquet"
        server.files[f"/datasets/rajpurkar/squad/resolve/main/{name}"] = out.getvalue()
        described.append({"type": "file", "path": name, "size": len(out.getvalue())})
    server.files[listing] = json.dumps(described).encode()
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.url)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    download.download(["squad"], tmp_path, 0.0)
    assert str(tmp_path / "wiki" / "dev.jsonl") in capsys.readouterr().out
    passages = list(read_passages(tmp_path / "wiki" / "passages.tsv"))
    assert [(p.id, p.title, len(p.text.split())) for p in passages] == [
        ("1", "New York", 100), ("2", "New York", 52), ("3", "Paris", 3),
    ]  # fmt: skip
    train = read_examples(tmp_path / "wiki" / "train.jsonl")
    assert [(e.id, e.question, e.answers, e.positive_ids) for e in train] == [
        ("a", "what is last?", ("the end",), ("2",)),
        ("b", "and first?", ("word0",), ("1",)),
    ]
    (dev,) = read_examples(tmp_path / "wiki" / "dev.jsonl")
    assert (dev.answers, dev.positive_ids) == (("Seine", "the Seine"), ("3",))
    damaged = tmp_path / "squad" / "plain_text" / "train-00000-of-00001.parquet"
    damaged.write_bytes(damaged.read_bytes()[:-9])
    with pytest.raises(UserError, match="train-00000-of-00001.parquet is damaged"):
        open_domain(tmp_path / "squad", tmp_path / "again")
    assert not list((tmp_path / "again").glob("*.jsonl"))
    pq.write_table(pa.table({"id": ["a"]}), damaged)
    with pytest.raises(UserError, match="has no column answers, context, question, title"):
        open_domain(tmp_path / "squad", tmp_path / "again")
    damaged.unlink()
    with pytest.raises(UserError, match=r"holds no train-\*.parquet"):
        open_domain(tmp_path / "squad", tmp_path / "again")

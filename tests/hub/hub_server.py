"""A Hugging Face hub on this machine: folders served by the routes that huggingface_hub and datasets ask for.

    root/models/OWNER/NAME/…      root/datasets/OWNER/NAME/…      the files of a repository's main branch

What is answered, with which headers, is what the real hub answers: commits and ETags, a redirect for large files, 401
with an X-Error-Code for what is not there or gated, another address for old names. A repository's commit is a hash of
its files, so that changing one makes a new commit; older commits are not kept. `hub.requests` lists what was asked.
"""

import base64
import fnmatch
import hashlib
import json
import shutil
import threading
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

LARGE = ("*.bin", "*.safetensors", "*.parquet", "*.faiss")  # served by redirect, as what lies in LFS is
OLD_NAMES = {"bert-base-uncased": "google-bert/bert-base-uncased"}


class Hub:
    """The server, while the `with` lasts. gated: repositories that nobody may read."""

    def __init__(self, root: Path):
        self.root = root
        self.gated: set[str] = set()
        self.requests: list[tuple[str, str]] = []  # (method, path)
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, self))
        self.server.daemon_threads = True
        self.address = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.files = (
            f"http://localhost:{self.server.server_address[1]}"  # as another host, where large files lie
        )

    def __enter__(self) -> "Hub":
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.server.shutdown()
        self.server.server_close()

    def folder(self, kind: str, name: str) -> Path:
        return self.root / kind / name

    def commit(self, folder: Path) -> str:
        digest = hashlib.sha1()
        for file in files_of(folder):
            digest.update(f"{file.relative_to(folder)} {blob(file)}\n".encode())
        return digest.hexdigest()

    def asked(self, pattern: str) -> list[str]:
        """The paths that were asked for and fit a pattern as the shell's."""
        return [path for _, path in self.requests if fnmatch.fnmatch(path, pattern)]


def files_of(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.is_file())


def blob(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def is_large(file: Path | str) -> bool:
    return any(fnmatch.fnmatch(str(file), pattern) for pattern in LARGE)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, hub: Hub, *arguments: Any):
        self.hub = hub
        super().__init__(*arguments)

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def do_POST(self) -> None:
        self.answer()

    # -- answers ----------------------------------------------------------------------------------

    def send(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if "Content_Length" not in headers:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def send_json(self, value: Any, status: int = 200, **headers: str) -> None:
        self.send(status, json.dumps(value).encode(), Content_Type="application/json", **headers)

    def refuse(self, status: int, code: str, message: str, **headers: str) -> None:
        self.send_json({"error": message}, status, X_Error_Code=code, X_Error_Message=message, **headers)

    # -- routes -----------------------------------------------------------------------------------

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        parts = urlsplit(self.path)
        path, query = unquote(parts.path).strip("/"), parse_qs(parts.query)
        self.hub.requests.append((self.command, f"/{path}"))
        if path.startswith("lfs/"):
            self.send_file(self.hub.root / path.removeprefix("lfs/"))
        elif path == "api/repos/create":
            self.create(json.loads(body))
        elif path == "api/validate-yaml":
            self.send_json({"errors": [], "warnings": []})
        elif path.startswith(("api/models/", "api/datasets/")):
            self.api(path.removeprefix("api/"), query, body)
        elif "/resolve/" in path:
            self.resolve(path)
        else:
            self.refuse(404, "EntryNotFound", "nothing here")

    def repository(self, kind: str, name: str) -> Path | None:
        """The folder of a repository; None where another answer was sent."""
        if name in OLD_NAMES:
            location = self.path.replace(name, OLD_NAMES[name], 1)
            self.send(307, Location=location)
            return None
        folder = self.hub.folder(kind, name)
        if folder.is_dir():
            return folder
        # nobody is told whether it is private or not there
        self.refuse(401, "RepoNotFound", "Repository not found")
        return None

    def split(self, path: str) -> tuple[str, str, list[str]]:
        """Kind, name and the rest of "models/owner/name/rest"; names of old repositories have one part."""
        kind, *rest = path.split("/")
        if rest[0] in OLD_NAMES:
            return kind, rest[0], rest[1:]
        return kind, "/".join(rest[:2]), rest[2:]

    def api(self, path: str, query: dict[str, list[str]], body: bytes) -> None:
        kind, name, rest = self.split(path)
        folder = self.repository(kind, name)
        if folder is None:
            return
        commit = self.hub.commit(folder)
        action = rest[0] if rest else "revision"
        if action == "revision":
            if len(rest) > 1 and rest[1] not in ("main", commit):
                self.refuse(404, "RevisionNotFound", f"Invalid rev id: {rest[1]}")
                return
            self.send_json(
                {
                    "_id": "0",
                    "id": name,
                    "modelId": name,
                    "sha": commit,
                    "private": False,
                    "gated": "manual" if name in self.hub.gated else False,
                    "disabled": False,
                    "downloads": 0,
                    "likes": 0,
                    "tags": [],
                    "lastModified": "2024-01-01T00:00:00.000Z",
                    "createdAt": "2022-03-02T23:29:04.000Z",
                    "siblings": [{"rfilename": str(f.relative_to(folder))} for f in files_of(folder)],
                }
            )
        elif action == "auth-check":
            if name in self.hub.gated:
                self.refuse(403, "GatedRepo", f"Access to {name} is restricted")
            else:
                self.send(200)
        elif action == "tree":
            under = folder.joinpath(*rest[2:])
            if not under.exists():
                self.refuse(404, "EntryNotFound", f"{'/'.join(rest[2:])} does not exist")
                return
            deep = query.get("recursive", ["false"])[0].lower() in ("true", "1")
            entries = under.rglob("*") if deep else under.iterdir()
            self.send_json([self.entry(folder, each) for each in sorted(entries)])
        elif action == "paths-info":
            asked = (
                json.loads(body)["paths"]
                if body.startswith(b"{")
                else parse_qs(body.decode()).get("paths", [])
            )
            there = [folder / each for each in asked if (folder / each).exists()]
            self.send_json([self.entry(folder, each) for each in there])
        elif action == "preupload":
            files = json.loads(body)["files"]
            self.send_json(
                {
                    "files": [
                        {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                        for file in files
                    ]
                }
            )
        elif action == "commit":
            for line in body.splitlines():
                line = json.loads(line)
                if line["key"] == "file":
                    file = folder / line["value"]["path"]
                    file.parent.mkdir(parents=True, exist_ok=True)
                    file.write_bytes(base64.b64decode(line["value"]["content"]))
            now = self.hub.commit(folder)
            self.send_json(
                {"commitOid": now, "commitUrl": f"{self.hub.address}/{name}/commit/{now}", "hookOutput": ""}
            )
        else:
            self.refuse(404, "EntryNotFound", f"no {action}")

    def entry(self, folder: Path, path: Path) -> dict[str, Any]:
        name = str(path.relative_to(folder))
        oid = hashlib.sha1(name.encode()).hexdigest()
        if path.is_dir():
            return {"type": "directory", "oid": oid, "size": 0, "path": name}
        size = path.stat().st_size
        described = {"type": "file", "oid": oid, "size": size, "path": name}
        if is_large(path):
            described["lfs"] = {"oid": blob(path), "size": size, "pointerSize": 134}
        return described

    def resolve(self, path: str) -> None:
        address, _, rest = path.partition("/resolve/")
        revision, _, file = rest.partition("/")
        kind, name = ("datasets", address[9:]) if address.startswith("datasets/") else ("models", address)
        folder = self.repository(kind, name)
        if folder is None:
            return
        commit = self.hub.commit(folder)
        if name in self.hub.gated:
            self.refuse(401, "GatedRepo", f"Access to model {name} is restricted", X_Repo_Commit=commit)
        elif revision not in ("main", commit):
            self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        elif not (folder / file).is_file():
            self.refuse(404, "EntryNotFound", "Entry not found", X_Repo_Commit=commit)
        elif is_large(file):
            content = folder / file
            self.send(
                302,
                Location=f"{self.hub.files}/lfs/{kind}/{name}/{file}",
                X_Repo_Commit=commit,
                X_Linked_ETag=f'"{blob(content)}"',
                X_Linked_Size=str(content.stat().st_size),
            )
        else:
            self.send_file(folder / file, X_Repo_Commit=commit)

    def send_file(self, file: Path, **headers: str) -> None:
        content = file.read_bytes()
        headers |= {"ETag": f'"{blob(file)}"', "Accept_Ranges": "bytes"}
        size, status = len(content), 200
        if (asked := self.headers.get("Range", "")).startswith("bytes="):
            first, _, last = asked.removeprefix("bytes=").partition("-")
            start, end = int(first or 0), min(int(last or size - 1), size - 1)
            headers["Content_Range"] = f"bytes {start}-{end}/{size}"
            content, status = content[start : end + 1], 206
        self.send(status, content, Content_Length=str(len(content)), **headers)

    def create(self, asked: dict[str, Any]) -> None:
        owner = asked.get("organization") or "someone"
        folder = self.hub.folder(f"{asked.get('type') or 'model'}s", f"{owner}/{asked['name']}")
        if folder.exists():
            self.refuse(409, "RepoAlreadyExists", "You already created this model repo")
            return
        folder.mkdir(parents=True)
        self.send_json(
            {"url": f"{self.hub.address}/{owner}/{asked['name']}", "id": f"{owner}/{asked['name']}"}
        )


def copy_hub(source: Path, target: Path) -> Hub:
    """A hub of its own with the same repositories."""
    shutil.copytree(source, target)
    return Hub(target)

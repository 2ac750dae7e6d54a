"""What the loopback hub answers: each request of the hub's client, from repositories in memory.

Repositories and switches are those of `loopback_hub.LoopbackHub`, which starts this handler.
"""

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote, urlparse

if TYPE_CHECKING:
    from loopback_hub import LoopbackHub

TOKEN = "hf_loopback"
LARGE = 4096  # bytes from which a file is served elsewhere
_API = re.compile(r"^/api/(models|datasets)/([^/]+/[^/]+)(?:/(.*))?$")
_FILE = re.compile(r"^/(?:(datasets)/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)$")
_LFS = re.compile(r"^/([^/]+/[^/]+)\.git/info/lfs/objects/batch$")


def etag(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class Handler(BaseHTTPRequestHandler):
    hub: "LoopbackHub"
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    # ── answers ───────────────────────────────────────────────────────────────────────────────────

    def _send(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _json(self, value: Any, status: int = 200) -> None:
        self._send(status, json.dumps(value).encode(), Content_Type="application/json")

    def _refuse(self, status: int, code: str = "", message: str = "") -> None:
        self._send(status, b"{}", X_Error_Code=code, X_Error_Message=message or code)

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _allowed(self, kind: str, name: str) -> bool:
        """Whether the repository may be read; otherwise the refusal was sent."""
        hub, token = self.hub, self.headers.get("Authorization", "").removeprefix("Bearer ")
        if hub.limited[name] > 0:
            hub.limited[name] -= 1
            self._send(429, b"{}", Retry_After="0")
        elif token not in ("", TOKEN):
            self._refuse(401, "", "Invalid credentials in Authorization header")
        elif (kind, name) not in hub.revisions or (name in hub.private and not token):
            self._refuse(401 if not token else 404, "RepoNotFound")
        elif name in hub.gated and not token:
            self._refuse(401, "GatedRepo")
        else:
            return True
        return False

    # ── requests ──────────────────────────────────────────────────────────────────────────────────

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlparse(self.path).path)
        self.hub.asked.append(f"{self.command} {path}")
        if path.startswith("/large/"):
            self._content(self.hub.stored[path.removeprefix("/large/").split("/")[0]], path)
        elif api := _API.match(path):
            self._about(api[1], api[2], api[3] or "")
        elif file := _FILE.match(path):
            self._file(file[1] or "models", file[2], file[3], file[4])
        else:
            self._refuse(404)

    def _about(self, kind: str, name: str, rest: str) -> None:
        if not self._allowed(kind, name):
            return
        what, _, more = rest.partition("/")
        revision = unquote(more.partition("/")[0]) if what in ("revision", "tree") else "main"
        commit = self.hub.commit_of(kind, name, revision)
        if commit is None:
            self._refuse(404, "RevisionNotFound")
            return
        content = self.hub.revisions[kind, name][commit]
        if what == "tree":
            inside = more.partition("/")[2]
            recursive = parse_qs(urlparse(self.path).query).get("recursive", [""])[0].lower()
            self._json(_tree(content, inside, recursive in ("true", "1")))
            return
        siblings = [{"rfilename": file} for file in content]
        gated = "auto" if name in self.hub.gated else False
        self._json({
            "_id": "0", "id": name, "modelId": name, "sha": commit, "siblings": siblings,
            "private": name in self.hub.private, "gated": gated,
            "disabled": False, "downloads": 0, "likes": 0, "tags": [],
        })  # fmt: skip

    def _file(self, kind: str, name: str, revision: str, file: str) -> None:
        if not self._allowed(kind, name):
            return
        commit = self.hub.commit_of(kind, name, revision)
        content = self.hub.revisions[kind, name].get(commit or "", {}).get(file)
        if commit is None or content is None:
            self._refuse(404, "RevisionNotFound" if commit is None else "EntryNotFound")
            return
        digest = etag(content)
        about = {"X_Repo_Commit": commit, "ETag": f'"{digest}"', "Accept_Ranges": "bytes"}
        if len(content) >= LARGE:
            self.hub.stored[digest] = content
            about |= {"X_Linked_Size": str(len(content)), "X_Linked_Etag": f'"{digest}"'}
            self._send(302, b"", Location=f"{self.hub.storage}/large/{digest}/{file}", **about)
        else:
            self._content(content, file, **about)

    def _content(self, content: bytes, path: str, **about: str) -> None:
        """A file or the range of it that is asked for; broken off half-way where that is set."""
        asked, status, part = self.headers.get("Range"), 200, content
        if asked and (found := re.fullmatch(r"bytes=(\d+)-(\d*)", asked)):
            first, last = int(found[1]), min(int(found[2] or len(content)), len(content) - 1)
            if first >= len(content):
                self._send(416, b"", Content_Range=f"bytes */{len(content)}")
                return
            status, part = 206, content[first : last + 1]
            about["Content_Range"] = f"bytes {first}-{last}/{len(content)}"
        if self.command == "HEAD":
            self.send_response(200)
            for name, value in {"Content_Length": str(len(content)), **about}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            return
        name = path.rpartition("/")[2]
        if self.hub.broken[name] > 0:
            self.hub.broken[name] -= 1
            self.send_response(status)
            self.send_header("Content-Length", str(len(part)))
            for key, value in about.items():
                self.send_header(key.replace("_", "-"), value)
            self.end_headers()
            self.hub.served += len(part) // 2
            self.wfile.write(part[: len(part) // 2])
            self.close_connection = True
            return
        self.hub.served += len(part)
        self._send(status, part, **about)

    # ── uploads ───────────────────────────────────────────────────────────────────────────────────

    def do_PUT(self) -> None:
        self.hub.asked.append(f"PUT {urlparse(self.path).path}")
        self.hub.stored[urlparse(self.path).path.rpartition("/")[2]] = self._body()
        self._send(200)

    def do_POST(self) -> None:
        path, body = unquote(urlparse(self.path).path), self._body()
        self.hub.asked.append(f"POST {path}")
        api = _API.match(path)
        if api and api[3] and api[3].startswith("paths-info/"):
            self._paths_info(api[1], api[2], api[3].partition("/")[2], body)
        elif path == "/api/validate-yaml":
            self._json({"errors": [], "warnings": []})
        elif self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._refuse(401, "", "Invalid username or password.")
        elif path == "/api/repos/create":
            given = json.loads(body)
            name = f"{given.get('organization') or 'me'}/{given['name']}"
            self.hub.revisions.setdefault(("models", name), {})
            if (visible := given.get("private")) or given.get("visibility") == "private":
                assert visible in (True, None)
                self.hub.private.add(name)
            self.hub.put(name, {}) if not self.hub.revisions["models", name] else None
            self._json({"url": f"{self.hub.url}/{name}", "name": name, "id": name})
        elif lfs := _LFS.match(path):
            self._lfs(lfs[1], json.loads(body))
        elif api and api[3] and api[3].startswith("preupload/"):
            asked = json.loads(body)["files"]
            modes = [(one["path"], "lfs" if one["size"] >= LARGE else "regular") for one in asked]
            self._json({"files": [
                {"path": p, "uploadMode": mode, "shouldIgnore": False, "oid": None}
                for p, mode in modes
            ]})  # fmt: skip
        elif api and api[3] and api[3].startswith("commit/"):
            self._commit(api[2], body)
        else:
            self._refuse(404)

    def _paths_info(self, kind: str, name: str, revision: str, body: bytes) -> None:
        if not self._allowed(kind, name):
            return
        commit = self.hub.commit_of(kind, name, revision)
        given = json.loads(body) if body.startswith(b"{") else parse_qs(body.decode())
        content = self.hub.revisions[kind, name].get(commit or "", {})
        tree = {one["path"]: one for one in _tree(content, "", True)}
        self._json([tree[path] for path in given["paths"] if path in tree])

    def _lfs(self, name: str, given: dict[str, Any]) -> None:
        self._json({"transfer": "basic", "objects": [
            {"oid": one["oid"], "size": one["size"], "actions": {
                "upload": {"href": f"{self.hub.storage}/upload/{one['oid']}"}}}
            for one in given["objects"]
        ]})  # fmt: skip

    def _commit(self, name: str, body: bytes) -> None:
        content = dict(self.hub.revisions["models", name].get("main", {}))
        for line in body.decode().splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                content[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                content[value["path"]] = self.hub.stored[value["oid"]]
        commit = self.hub.put(name, content)
        url = f"{self.hub.url}/{name}/commit/{commit}"
        self._json({"success": True, "commitOid": commit, "commitUrl": url})


def _tree(content: Mapping[str, bytes], inside: str, recursive: bool) -> list[dict[str, Any]]:
    """Files and folders below `inside`."""
    found: dict[str, dict[str, Any]] = {}
    for file, part in content.items():
        if inside and not file.startswith(f"{inside}/"):
            continue
        below = file.removeprefix(f"{inside}/" if inside else "").split("/")
        for depth in range(1, len(below)):
            folder = "/".join([*([inside] if inside else []), *below[:depth]])
            if recursive or depth == 1:
                found[folder] = {"type": "directory", "path": folder, "oid": "0" * 40, "size": 0}
        if recursive or len(below) == 1:
            found[file] = {"type": "file", "path": file, "oid": etag(part)[:40], "size": len(part)}
            if len(part) >= LARGE:
                lfs = {"oid": etag(part), "size": len(part), "pointerSize": 130}
                found[file]["lfs"] = lfs
    return list(found.values())

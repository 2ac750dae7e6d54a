"""A W&B server on this machine: as much of its API as a run needs, and what was sent to it.

with WandbServer() as server:
    environment |= {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": server.key}
server.history          # rows that were logged, in order
"""

import gzip
import json
import re
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class WandbServer:
    """Answers GraphQL by the names of its fields; keeps the history of all runs."""

    key = "local-" + "0" * 40

    def __init__(self, broken: bool = False) -> None:
        self.runs: dict[str, list[dict[str, Any]]] = {}
        """Rows that were logged, by the path of the run's stream."""
        self.operations: list[str] = []
        self.asked: list[str] = []
        self.broken = broken
        handler = type("Handler", (_Handler,), {"wandb": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    @property
    def history(self) -> list[dict[str, Any]]:
        """The rows of all runs."""
        return [row for run in self.runs.values() for row in run]

    def __enter__(self) -> "WandbServer":
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.server.shutdown()
        self.server.server_close()


class _Handler(BaseHTTPRequestHandler):
    wandb: WandbServer
    protocol_version = "HTTP/1.1"

    def handle(self) -> None:
        with suppress(ConnectionError):  # a client that has what it wanted hangs up
            super().handle()

    def log_message(self, *_: Any) -> None:
        pass

    def _json(self, value: Any, status: int = 200) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        self._json({}, 404)

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self._json({})

    def _body(self) -> bytes:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        while self.headers.get("Transfer-Encoding") == "chunked":
            size = int(self.rfile.readline(), 16)
            body += self.rfile.read(size)
            self.rfile.readline()
            if not size:
                break
        return gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body

    def do_POST(self) -> None:
        body = self._body()
        self.wandb.asked.append(self.path)
        if self.wandb.broken:
            self._json({"error": "out of order"}, 500)
        elif self.path.endswith("/file_stream"):
            files = json.loads(body).get("files") or {}
            run = self.wandb.runs.setdefault(self.path, [])
            for line in (files.get("wandb-history.jsonl") or {}).get("content", []):
                run.append(json.loads(line))
            self._json({"exitcode": None, "limits": {}})
        elif self.path == "/graphql":
            self._graphql(json.loads(body))
        else:
            self._json({})

    def _graphql(self, asked: dict[str, Any]) -> None:
        query, given = asked.get("query", ""), asked.get("variables") or {}
        name = (re.search(r"(?:query|mutation)\s+(\w+)", query) or [None, ""])[1]
        self.wandb.operations.append(str(name))
        entity = {"id": "e", "name": "someone"}
        project = {"id": "p", "name": given.get("project") or "model-diffs", "entity": entity}
        if "upsertBucket" in query:
            bucket = {"id": "r", "name": given.get("name") or "run", "displayName": "run",
                      "description": None, "config": "{}", "sweepName": None, "project": project,
                      "historyLineCount": 0}  # fmt: skip
            self._json({"data": {"upsertBucket": {"bucket": bucket, "inserted": True}}})
        elif "createRunFiles" in query:
            files = [{"name": n, "uploadUrl": f"{self.wandb.url}/upload"} for n in given["files"]]
            made = {"runID": "r", "uploadHeaders": [], "files": files}
            self._json({"data": {"createRunFiles": made}})
        elif "viewer" in query:
            viewer = {"id": "u", "entity": "someone", "username": "someone", "flags": "{}",
                      "teams": {"edges": []}}  # fmt: skip
            self._json({"data": {"viewer": viewer, "serverInfo": {}}})
        else:
            self._json({"data": {}})

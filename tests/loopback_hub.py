"""A hub on this machine: the part of the Hugging Face Hub's API that its client uses.

    with LoopbackHub() as hub:
        hub.put("org/model", folder)                       # or {"config.json": b"…"}
        hub.put("org/data", folder, kind="datasets")
        # HF_ENDPOINT=hub.url for other processes; for this one:
        use(hub, monkeypatch, tmp_path / "cache")

Large files are served by a redirect to another path, as the hub's are, with ranges. `hub.served`
counts the bytes of files that were sent, `hub.asked` the requests. `private`, `gated` and `limited`
make it refuse, `broken` break the connection half-way (times per file).
"""

import hashlib
import re
import threading
from collections import Counter
from collections.abc import Mapping
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

from hub_answers import Handler, etag


class LoopbackHub:
    """Repositories in memory, behind a server on a free port."""

    def __init__(self) -> None:
        self.revisions: dict[tuple[str, str], dict[str, dict[str, bytes]]] = {}
        self.private: set[str] = set()
        self.gated: set[str] = set()
        self.limited: Counter[str] = Counter()
        self.broken: Counter[str] = Counter()
        self.asked: list[str] = []
        self.served = 0
        self.stored: dict[str, bytes] = {}
        handler = type("Handler", (Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        # Another host by name, as where the hub keeps large files.
        self.storage = f"http://localhost:{self.server.server_address[1]}"

    def __enter__(self) -> "LoopbackHub":
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.server.shutdown()
        self.server.server_close()

    def put(
        self,
        name: str,
        files: Path | Mapping[str, bytes],
        revision: str = "main",
        kind: str = "models",
    ) -> str:
        """Replace a revision's files; returns its commit."""
        if isinstance(files, Path):
            every = [path for path in sorted(files.rglob("*")) if path.is_file()]
            files = {path.relative_to(files).as_posix(): path.read_bytes() for path in every}
        content = dict(files)
        digest = hashlib.sha1(repr([(n, etag(b)) for n, b in content.items()]).encode())
        commit = digest.hexdigest()
        repository = self.revisions.setdefault((kind, name), {})
        repository[revision] = repository[commit] = content
        return commit

    def commit_of(self, kind: str, name: str, revision: str) -> str | None:
        """The commit that a revision is; None where there is none."""
        repository = self.revisions.get((kind, name), {})
        content = repository.get(revision)
        names = (
            n for n, c in repository.items() if c is content and re.fullmatch("[0-9a-f]{40}", n)
        )
        return None if content is None else next(names)


def use(hub: LoopbackHub, monkeypatch: Any, cache: Path) -> None:
    """Make this process's client ask the loopback hub, with a cache of its own."""
    import datasets
    import huggingface_hub
    from huggingface_hub import HfFileSystem, constants

    from model_diffs.models import files

    template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", hub.url)
    monkeypatch.setattr(files, "_fingerprinted", {})
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", hub.url)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache / "datasets")
    HfFileSystem.clear_instance_cache()
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    files.resolve.cache_clear()

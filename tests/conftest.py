"""The miniature study, run once from a copy of the project and shared by all tests that need it."""

import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import kills

# Tests start scripts as processes: without cached bytecode each would compile torch anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
# Started in the background, as CI does, this process ignores Ctrl-C, and so would what it starts.
signal.signal(signal.SIGINT, signal.default_int_handler)
# Nothing that a test writes is published.
for name in ("WANDB_API_KEY", "WANDB_MODE"):
    os.environ.pop(name, None)
# Two workers with a thread each: tiny models gain nothing from more, which wait for one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).parent.parent
PRODUCED = shutil.ignore_patterns(
    *(".git", ".venv", ".*_cache", "__pycache__", "data", "models", "unlearned_models"),
    *("outputs", "artifacts", "wandb", "uv.lock", ".env", ".hypothesis", "*.egg-info"),
)


@dataclass(frozen=True)
class Study:
    """A copy of the project in which the miniature was run."""

    root: Path
    output: str
    """What the first run printed."""

    @property
    def outputs(self) -> Path:
        return self.root / "outputs"

    def environment(self, **changed: str) -> dict[str, str]:
        """The environment of a run: this one's packages, nothing that steers a study."""
        steering = ("BASE", "COMPARE", "UNLEARN", "OUTROOT", "MAX_SAMPLES", "LAUNCHER", "WANDB")
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(steering)}
        packages = {"UV_PROJECT_ENVIRONMENT": sys.prefix, "UV_NO_SYNC": "1"}
        return {**inherited, **packages, "UNLEARN": "npo rmu noise", "MAX_SAMPLES": "60", **changed}

    def pipeline(self, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run `./pipeline.sh` here."""
        return subprocess.run(
            ["./pipeline.sh", *words],
            cwd=self.root,
            env=self.environment(**environment),
            capture_output=True,
            text=True,
        )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What needs the miniature study starts first, since it takes longest."""
    items.sort(key=lambda item: item.path.name != "test_pipeline.py")


def copy_project(folder: Path) -> Path:
    """A copy of the project as it would be cloned. (The package's own `models.py` is a file.)"""

    def ignore(here: str, names: list[str]) -> set[str]:
        return PRODUCED(here, names) if Path(here) == ROOT else {"__pycache__"}

    shutil.copytree(ROOT, folder, ignore=ignore)
    return folder


LESS = {"lipschitz-samples = 64": "lipschitz-samples = 12"}
"""What the study of the tests does less of."""


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """The miniature, from nothing, with two of its unlearned models, one control, fewer texts."""
    root = copy_project(tmp_path_factory.mktemp("study") / "project")
    declared = root / "studies/miniature.toml"
    lines = declared.read_text(encoding="utf-8").splitlines(keepends=True)
    # A third training from nothing costs as much as each of the two that the others need.
    kept = [line for line in lines if "miniature-reseeded" not in line and 'reseeded"' not in line]
    assert len(kept) == len(lines) - 2
    text = "".join(kept)
    for whole, less in LESS.items():
        assert text.count(whole) == 1, whole
        text = text.replace(whole, less)
    declared.write_text(text, encoding="utf-8")
    found = Study(root, "").pipeline()
    assert found.returncode == 0, found.stdout + found.stderr
    return Study(root, found.stdout)


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> "kills.World":
    """A tiny study, left as it was by every test that strikes it: models, steps 1, 2, 4 and 14."""
    import kills

    return kills.make_world(tmp_path_factory.mktemp("kills") / "project", "unlearn,1,2,4,14")

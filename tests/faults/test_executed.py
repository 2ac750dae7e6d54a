"""Nothing from a study, from .env or from the environment is evaluated by a shell."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import copy_project

# An arithmetic context runs the first, quoting that fails the second.
HOSTILE = ["x[$(touch executed)]", "$(touch executed) `touch executed`; touch executed #'\""]
# What the plan refuses stops it early, so what it takes is also given alone.
TAKEN = ("BASE", "COMPARE", "FORGET_TEXT", "RETAIN_TEXT", "QUESTIONS", "ATTACK_TEXT", "DICTIONARY",
         "PARAM_DEVICE", "PARAM_DTYPE", "ACTIVATION_DTYPE", "MODEL_DIFFS_INVOCATION",
         "MODEL_DIFFS_PIPELINE", "MODEL_DIFFS_PROGRESS_FD", "MODEL", "LAYER_ID", "OUTDIR", "FLAGS",
         "METHOD", "WORDS", "name", "word", "VENV", "HERE", "LAUNCH")  # fmt: skip
REFUSED = ("UNLEARN", "UNLEARN_SEEDS", "MAX_SAMPLES", "METHODS", "LAUNCHER", "OUTROOT", "LR")
# It lists the options of unlearning for run_unlearn.sh, but unlearns nothing.
UV = """#!/bin/sh
for word in "$@"; do case "$word" in */unlearn.py) exit 0 ;; esac; done
while [ "$1" != python ] && [ $# -gt 0 ]; do shift; done
if [ $# -gt 0 ]; then shift; exec "{python}" "$@"; fi
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project, with a `uv` that only starts this Python."""
    root = copy_project(tmp_path_factory.mktemp("hostile") / "project")
    (root / "bin").mkdir()
    (root / "bin/uv").write_text(UV.format(python=sys.executable))
    (root / "bin/uv").chmod(0o755)
    return root


def run(project: Path, words: tuple[str, ...], given: dict[str, str]) -> None:
    """Run a script; whatever it says, it has executed nothing, and said so in few words."""
    kept = {k: v for k, v in os.environ.items() if k in ("HOME", "TMPDIR", "LANG")}
    kept |= {"PATH": f"{project}/bin:{os.environ['PATH']}", "UV_NO_SYNC": "1"}
    kept |= {"UV_PROJECT_ENVIRONMENT": sys.prefix}
    found = subprocess.run(
        ["bash", *words], cwd=project, env={**kept, **given}, capture_output=True, text=True
    )
    assert not list(project.rglob("executed*"))
    assert found.returncode in (0, 2), found.stderr
    assert len(found.stderr.splitlines()) == (1 if found.returncode else 0), found.stderr


SCRIPTS = [
    ("./pipeline.sh", "--dry-run", "--steps", "0-2"),
    ("./create_all_unlearning_models.sh", "--dry-run"),
    ("./run_unlearn.sh", "npo", "--force"),
]


@pytest.mark.parametrize("words", SCRIPTS, ids=lambda words: words[0])
@pytest.mark.parametrize("refused", [(), REFUSED])
def test_values_of_the_environment_are_never_executed(
    project: Path, words: tuple[str, ...], refused: tuple[str, ...]
) -> None:
    for value in HOSTILE:
        run(project, words, dict.fromkeys((*TAKEN, *refused), value))


@pytest.mark.parametrize("words", SCRIPTS, ids=lambda words: words[0])
def test_values_of_a_dotenv_file_are_never_executed(project: Path, words: tuple[str, ...]) -> None:
    for names in (("UNLEARN",), (*TAKEN, *REFUSED)):
        lines = [f"{name}='x[$(touch executed)]'" for name in names]
        (project / ".env").write_text("\n".join(lines) + "\n")
        run(project, words, {})
    (project / ".env").unlink()


def test_words_of_a_command_line_are_never_executed(project: Path) -> None:
    for value in HOSTILE:
        for script in ("./pipeline.sh", "./run_unlearn.sh"):
            run(project, (script, value), {})
        run(project, ("./pipeline.sh", "--dry-run", "--steps", value), {})


def test_a_dry_run_needs_no_place_to_write_to(project: Path) -> None:
    def there() -> set[Path]:  # without what Python keeps of modules that it imported
        return {one for one in project.rglob("*") if "__pycache__" not in one.parts}

    before = there()
    for place in ("/proc/nowhere", "pipeline.sh"):
        run(project, ("./pipeline.sh", "--dry-run"), {"OUTROOT": place})
        run(project, ("./pipeline.sh", "--steps", "1"), {"OUTROOT": place})
    assert there() == before


def test_a_dotenv_file_that_is_no_text_is_refused(project: Path) -> None:
    (project / ".env").write_bytes(b"\xff\xfe=1\n")
    run(project, ("./pipeline.sh", "--dry-run"), {})
    (project / ".env").unlink()

"""Upload of a model folder to the hub, into a repository that is private until its owner says else.

uv run python -m model_diffs.unlearning.pushing unlearned_models/miniature-base__npo org/name
"""

import os
import re
import sys
from pathlib import Path

from model_diffs.core.errors import BadInput
from model_diffs.core.script import run_script
from model_diffs.models.files import CONFIG, hub_errors

_NAME = re.compile(r"[\w][\w.-]*/[\w][\w.-]*")


def check_name(repository: str) -> None:
    """Raise BadInput where a name is none of a repository, or nobody would be let in."""
    if not _NAME.fullmatch(repository) or ".." in repository:
        raise BadInput(f"--push-to: {repository!r} is no org/name")
    if not os.environ.get("HF_TOKEN"):
        raise BadInput(f"--push-to {repository}: set HF_TOKEN (with write access) in .env")


def push(folder: Path, repository: str) -> None:
    """Upload the files of a model folder and say where they are.

    Raises BadInput, with the command that tries again, where the hub does not take them.
    """
    check_name(repository)
    if not (folder / CONFIG).is_file():
        raise BadInput(f"{folder}: no {CONFIG}; this is not a model folder")
    from huggingface_hub import HfApi

    hub = HfApi(token=os.environ["HF_TOKEN"])
    try:
        with hub_errors(repository):
            hub.create_repo(repository, private=True, exist_ok=True)
            done = hub.upload_folder(repo_id=repository, folder_path=folder)
    except BadInput as error:
        again = f"uv run python -m model_diffs.unlearning.pushing {folder} {repository}"
        raise BadInput(f"{folder} is saved, but {error}; try again: {again}") from error
    print(f"pushed to {repository} (private): {done.commit_url}")


def main() -> None:
    """Push one folder."""
    if len(sys.argv) != 3:
        raise BadInput("a model folder and org/name are expected")
    push(Path(sys.argv[1]), sys.argv[2])


if __name__ == "__main__":
    run_script(main)

"""Weights & Biases, only where WANDB_API_KEY is set or WANDB_MODE is offline.

Each committed result folder becomes one W&B run with its arguments, its CSVs as tables and its
figures as images; training shows its losses in the same run while it lasts. Nothing is uploaded but
what the folder holds. What fails here is a warning: results do not depend on it.
"""

import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

DEFAULT_PROJECT = "model-diffs"
# Set by pipeline.sh, so that the runs of one invocation stand together.
GROUP = "MODEL_DIFFS_INVOCATION"
INIT_SECONDS = 30
_live: dict[Path, Any] = {}  # runs of folders that are being filled


class _Forgiven:
    """Turns what fails inside into one line on stderr, once per process."""

    said = False

    def __enter__(self) -> None:
        return None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        _: TracebackType | None,
    ) -> bool:
        if not isinstance(error, Exception):
            return False
        if not _Forgiven.said:
            _Forgiven.said = True
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            print(f"warning: W&B: {first}; results are not affected", file=sys.stderr)
        return True


def wanted() -> bool:
    """Whether the environment asks for W&B."""
    mode = os.environ.get("WANDB_MODE")
    return mode == "offline" or (bool(os.environ.get("WANDB_API_KEY")) and mode != "disabled")


def _open(folder: Path, label: str, arguments: Mapping[str, Any]) -> Any:
    import wandb

    return wandb.init(
        project=os.environ.get("WANDB_PROJECT", DEFAULT_PROJECT),
        group=os.environ.get(GROUP),
        job_type=folder.name,
        name=f"{label}/{folder.name}",
        config=dict(arguments),
        reinit="create_new",  # several results may be made at a time
        settings=wandb.Settings(console="off", silent=True, init_timeout=INIT_SECONDS),
    )


def begin(
    folder: Path, label: str, arguments: Mapping[str, Any], parts: Iterable[str] = ()
) -> None:
    """Open the run of a result that is being made, so that `log` shows its progress.

    Where several trainings make one folder, `parts` names them: each is drawn over its own steps.
    """
    if wanted():
        with _Forgiven():
            run = _live[folder] = _open(folder, label, arguments)
            for part in parts:
                run.define_metric(f"{part}/*", step_metric=f"{part}/step")


def log(folder: Path, step: int, values: Mapping[str, Any], part: str = "") -> None:
    """Numbers of a step of training, or of the `part` that is trained, at once, in the run of the
    folder that is being made."""
    run = _live.get(folder)
    if run is not None:
        known = {name: value for name, value in values.items() if value is not None}
        with _Forgiven():
            if part:
                run.log({f"{part}/{name}": v for name, v in ({"step": step} | known).items()})
            else:
                run.log(known, step=step)


def give_up(folder: Path) -> None:
    """Close the run of a folder that was not made, as failed."""
    run = _live.pop(folder, None)
    if run is not None:
        with _Forgiven():
            run.finish(exit_code=1)


def publish(folder: Path, record: dict[str, Any]) -> None:
    """Log one committed result folder in its run, where the environment asks for it, and end it."""
    if not wanted():
        return
    with _Forgiven():
        run = _live.pop(folder, None) or _open(folder, record["label"], record["arguments"])
        run.log(_content(folder, record))
        run.finish()


def _content(folder: Path, record: Mapping[str, Any]) -> dict[str, Any]:
    import pandas as pd
    import wandb

    logged: dict[str, Any] = {"seconds": record["seconds"]}
    for entry in record["outputs"]:
        path = folder / entry["path"]
        if path.suffix == ".csv":
            frame = pd.read_csv(path)
            # A W&B table has one type per column; undefined cells stay empty.
            logged[path.stem] = wandb.Table(
                dataframe=frame.astype(object).where(frame.notna(), None)
            )
        elif path.suffix == ".png":
            logged[path.stem] = wandb.Image(str(path))
    return logged

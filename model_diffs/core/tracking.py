"""Weights & Biases, only where WANDB_API_KEY is set or WANDB_MODE is offline.

Each committed result folder becomes one W&B run with its arguments, its CSVs as tables and its
figures as images. Nothing is uploaded but what the folder holds.
"""

import os
from pathlib import Path
from typing import Any

DEFAULT_PROJECT = "model-diffs"
# Set by pipeline.sh, so that the runs of one invocation stand together.
GROUP = "MODEL_DIFFS_INVOCATION"


def publish(folder: Path, record: dict[str, Any]) -> None:
    """Log one committed result folder as a finished W&B run, where the environment asks for it."""
    if not os.environ.get("WANDB_API_KEY") and os.environ.get("WANDB_MODE") != "offline":
        return
    import pandas as pd
    import wandb

    run = wandb.init(
        project=os.environ.get("WANDB_PROJECT", DEFAULT_PROJECT),
        group=os.environ.get(GROUP),
        job_type=folder.name,
        name=f"{record['label']}/{folder.name}",
        config=record["arguments"],
        settings=wandb.Settings(console="off", silent=True),
    )
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
    run.log(logged)
    run.finish()

"""Runs scripts in forks of this process, once it has imported what most of them need.

Importing torch takes a process two to six seconds, which is most of what a small step takes. Forks
are made on Linux only: elsewhere system libraries do not survive them.
"""

import gc
import io
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn

from model_diffs.core.script import execute, run_script
from model_diffs.pipeline.units import Unit

FORKS = sys.platform == "linux"
HEAVY = (
    *("torch", "transformers", "accelerate", "safetensors.torch", "pandas", "scipy.linalg"),
    *("sklearn.linear_model", "sklearn.model_selection", "matplotlib.pyplot", "datasets"),
    *("transformers.models.auto.modeling_auto", "transformers.models.auto.tokenization_auto"),
    # What the first class of a model imports: torch's compiler, and with it sympy.
    *("transformers.activations", "transformers.generation", "transformers.modeling_layers"),
)
"""What steps that compute import. None of it starts a thread that lives on, or a GPU's driver."""


def prepare(units: Sequence[Unit]) -> None:
    """Import what these units need, if two or more of them compute."""
    if FORKS and sum(one.script.accepts("device") for one in units) > 1:
        # Read at import: threads that wait for work sleep (see core/script.py).
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        os.environ.setdefault("MPLBACKEND", "agg")
        for name in HEAVY:
            import_module(name)
        _draw_once()
        gc.freeze()  # forks share these objects as long as nobody writes to them


def _draw_once() -> None:
    """Draw one figure, so that forks have the fonts."""
    from matplotlib.figure import Figure

    figure = Figure()
    axes = figure.add_subplot()
    axes.set(title="title", xlabel="block", yscale="log")
    figure.savefig(io.BytesIO(), format="png")


def run(unit: Unit, words: Sequence[str]) -> NoReturn:
    """Do what the unit's script does with these words as a command."""
    run_script(lambda: execute(unit.script.module, words))

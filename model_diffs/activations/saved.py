"""Saved activation statistics: where they are, and what they hold.

An entry is found by the content it was computed from: `<outroot>/activation_cache/<key>/`, where
the key is a hash of the models' fingerprints, the texts and the options that change the numbers. So
a model folder that was moved or renamed finds its statistics again, and two models of the same name
have two entries. NumPy only: a step that finds everything saved loads neither torch nor
transformers.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open

from model_diffs.core import naming, results
from model_diffs.core.options import Pass
from model_diffs.core.results import PlannedRun
from model_diffs.data.texts import Split
from model_diffs.models import files

FOLDER = "activation_cache"
TENSORS = "statistics.safetensors"
OPTIONS = ("max_length", "batch_size", "keep_bos", "skip_first", "device", "dtype")
"""Options that change the numbers and are therefore part of the key."""

VERSION = 3
"""Of what an entry holds: one of another version is made again."""

# What steps read of the record, beside the tensors.
_TOLD = {
    **dict.fromkeys(("models", "left_out"), dict),
    **dict.fromkeys(("tokens_sha256", "device", "dtype"), str),
    "tokens": int,
}

Array = NDArray[Any]
States = Literal["hidden", "residual", "every"]
"""`hidden`: 0 to N as in transformers' `output_hidden_states`, N after the final norm; `residual`:
0 to N of the residual stream, N before that norm; `every`: N + 2 states, `hidden` and then state N
before the norm."""
_FIRST_AXIS = ("mean", "spectrum", "first_position_ratio")
_WITHOUT_STATES = ("documents", "tokens")


def pick(values: Array, which: States, axis: int) -> Array:
    """Those of `every` state along `axis`; a view for `hidden`."""
    if which == "every":
        return values
    if which == "residual":
        return np.delete(values, -2, axis)
    return values[(slice(None),) * axis + (slice(None, -1),)]


@dataclass
class ModelStatistics:
    """One model on one split. S = N + 2 states: 0 the embedding output, then one per block, the
    last of them after the final norm and once more before it.

    Tokens are those that count: no padding, no BOS (unless kept), not the first N skipped.
    """

    documents: Array
    """`[documents]` position of each document in the split; those without a token are left out."""
    tokens: Array
    """`[documents]` tokens that count."""
    norm_l1: Array
    """`[documents, S]` Σ over tokens of ‖h‖₁."""
    norm_l2: Array
    """`[documents, S]` Σ over tokens of ‖h‖₂."""
    pooled: Array
    """`[documents, S, hidden]` fp32, mean over the document's tokens."""
    last: Array
    """`[documents, S, hidden]` fp32, state of the last token that is not padding."""
    mean: Array
    """`[S, hidden]` fp64, mean over all tokens."""
    spectrum: Array
    """`[S, hidden]` fp64, eigenvalues of the covariance over all tokens, falling."""
    first_position_ratio: Array
    """`[S]` mean ‖h‖₂ at the first counted position over that at the others."""


@dataclass
class DifferenceStatistics:
    """Model B against model A on the same tokens of a split: per-document sums `[documents, S]`."""

    documents: Array
    tokens: Array
    dh_l1: Array
    """Σ over tokens of ‖Δh‖₁."""
    dh_l2: Array
    """Σ over tokens of ‖Δh‖₂."""
    dh_rel: Array
    """Σ over tokens of ‖Δh‖₂ / ‖h_A‖₂."""
    cosine: Array
    """Σ over tokens of the cosine of h_A and h_B."""


class Saved(NamedTuple):
    """Statistics of a model on a split (model_b empty), or of the change from A to B.

    Tensors are read from disk when asked for.
    """

    planned: PlannedRun
    split: Split
    model_a: str
    model_b: str

    @property
    def path(self) -> Path:
        """File of the tensors."""
        return self.planned.folder / TENSORS

    def complete(self) -> bool:
        """Whether the entry is there, as it was written. What is damaged is made again."""
        if results.state(self.planned).status != "complete":
            return False
        record = self.record()
        told = all(isinstance(record.get(name), kind) for name, kind in _TOLD.items())
        return told and all(isinstance(one, dict) for one in record["models"].values())

    def read(self, name: str, states: States = "hidden") -> Array:
        """A tensor by its name in `ModelStatistics` or `DifferenceStatistics`, of these states."""
        with safe_open(self.path, framework="numpy") as handle:
            found = handle.get_tensor(name)
        return (
            found if name in _WITHOUT_STATES else pick(found, states, int(name not in _FIRST_AXIS))
        )

    def record(self) -> dict[str, Any]:
        """The run.json beside them."""
        return json.loads((self.planned.folder / results.RECORD).read_text(encoding="utf-8"))


def entry(options: Pass, split: Split, model_a: str, model_b: str = "") -> Saved:
    """The entry of a model, or of the change from A to B, whether it is there or not."""
    models = [model for model in (model_a, model_b) if model]
    decisive = {name: getattr(options, name) for name in OPTIONS}
    decisive |= {"texts": split.sha256, "models": [files.fingerprint(one) for one in models]}
    if model_b:
        decisive["cache_fp16"] = options.cache_fp16
    key = hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:32]
    label = f"{'__to__'.join(map(naming.model_label, models))} {split.name}"
    folder = Path(options.outroot, FOLDER, key)
    planned = PlannedRun(folder, label, decisive, model_a, model_b, version=VERSION)
    return Saved(planned, split, model_a, model_b)

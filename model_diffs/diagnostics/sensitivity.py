"""Step 12: the sensitivity of one model on a sample of texts, and how it changes from A to B."""

import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import nn

from model_diffs.activations.passes import Reader, Tokens
from model_diffs.activations.tokens import padded_batches
from model_diffs.core.errors import BadInput
from model_diffs.core.progress import progress
from model_diffs.data.texts import length_batches
from model_diffs.diagnostics import lipschitz
from model_diffs.models import devices, loading
from model_diffs.models.anatomy import Anatomy
from model_diffs.stats.intervals import mean_interval, ratio_interval

METRICS = ("lipschitz", "gradient_norm", "output_variance", "jacobian_norm")
# Perturbed passes and graphs kept for derivatives are cut to these sizes, in entries.
_LOGITS = 1 << 26
_STATES = 1 << 24


class Settings(NamedTuple):
    """How sensitivity is measured."""

    epsilon: float = 0.01
    """Length of a perturbation relative to each token's embedding."""
    perturbations: int = 10
    tolerance: float = 1e-3
    """Relative change at which the Jacobian norm counts as found."""
    max_iterations: int = 100
    batch_size: int = 16
    seed: int = 42


class TextRow(NamedTuple):
    """One text of per_text.csv."""

    model: str
    data: str
    text: int
    """Its position in the split."""
    tokens: int
    """Tokens that count."""
    lipschitz: float
    gradient_norm: float | None
    """None where the text has a single token."""
    output_variance: float
    jacobian_norm: float
    jacobian_iterations: int
    jacobian_converged: bool
    loss: float | None
    """Mean next-token loss, nats."""


def spread_sample(tokens: Tokens, count: int, seed: int) -> Tokens:
    """`count` documents at even distances (all where 0, or no more), from a seeded first one on."""
    total = len(tokens.ids)
    if count == 0 or count >= total:
        return tokens
    offset = np.random.default_rng(seed).random()
    rows = np.floor((np.arange(count) + offset) * total / count).astype(int)
    return Tokens(
        [tokens.ids[row] for row in rows],
        [tokens.starts[row] for row in rows],
        tokens.documents[rows],
        tokens.left_out,
    )


def measure(
    reader: Reader, label: str, split: str, tokens: Tokens, pad_id: int, settings: Settings
) -> list[TextRow]:
    """Sensitivity of one model on every document of a split, in their order.

    Texts are shared out among processes, and all of them get all rows. Raises BadInput where an
    output is not finite.
    """
    device = next(reader.model.parameters()).device
    rank, processes = devices.processes()
    sizes = [len(ids) for ids in tokens.ids]
    batches = _batches(sizes, settings.batch_size, reader.anatomy)[rank::processes]
    columns = len(METRICS) + 3
    values = torch.zeros(len(sizes), columns, dtype=torch.float64)
    bar = progress(batches, f"{label} {split}", unit="batch")
    for at in padded_batches(tokens, bar, pad_id, device):
        seeds = [_seed(settings.seed, split, int(tokens.documents[row])) for row in at.rows]
        values[at.rows] = _measure_batch(reader, at.batch, at.counted, seeds, settings)
    values = devices.sum_over_processes(values)
    _check(values[:, [0, 2, 3]], tokens, label, split)
    counts = tokens.counts
    return [
        _row(label, split, int(tokens.documents[row]), int(counts[row]), line)
        for row, line in enumerate(values.tolist())
    ]


def _row(label: str, split: str, text: int, tokens: int, line: Sequence[float]) -> TextRow:
    lipschitz_, gradient, variance, jacobian, iterations, converged, loss = line
    defined = gradient == gradient
    return TextRow(
        label,
        split,
        text,
        tokens,
        lipschitz_,
        gradient if defined else None,
        variance,
        jacobian,
        int(iterations),
        bool(converged),
        loss if defined else None,
    )


def _seed(seed: int, split: str, document: int) -> int:
    """A seed for each document, the same for every model."""
    digest = hashlib.sha256(f"{seed} {split} {document}".encode()).digest()
    return int.from_bytes(digest[:6], "big")


def _batches(sizes: Sequence[int], batch_size: int, anatomy: Anatomy) -> list[list[int]]:
    """Documents of similar length, fewer at a time where their kept graph would be large."""
    longest, per_token = max(sizes), anatomy.embedding.weight.shape[1] * len(anatomy.blocks)
    return length_batches(sizes, max(1, min(batch_size, _STATES // (longest * per_token))))


def _measure_batch(
    reader: Reader,
    batch: loading.Batch,
    counted: torch.Tensor,
    seeds: Sequence[int],
    settings: Settings,
) -> torch.Tensor:
    """Per text `[B, 7]`: the metrics, iterations, converged, loss."""
    x = lipschitz.embed(reader.anatomy, batch)
    if not bool((torch.linalg.vector_norm(x.float(), dim=-1)[counted] > 0).all()):
        raise BadInput(f"{reader.name}: a token's embedding is zero, no distance is relative to it")

    def outputs(at: torch.Tensor) -> lipschitz.Output:
        mask = batch.attention_mask.repeat(len(at) // len(x), 1)
        return lipschitz.run(reader.model, reader.anatomy, at, mask)

    deltas = lipschitz.perturbations(x, counted, settings.epsilon, settings.perturbations, seeds)
    vocabulary = reader.anatomy.head.weight.shape[0]
    per_pass = max(1, _LOGITS // (x.shape[0] * x.shape[1] * vocabulary))
    with torch.no_grad():
        response = lipschitz.respond(outputs, x, counted, deltas, per_pass)
    gradient = lipschitz.gradient_norms(outputs, x, batch, counted)
    jacobian = lipschitz.jacobian_norms(
        lipschitz.trunk_function(reader.anatomy, batch.attention_mask),
        x,
        counted,
        seeds,
        settings.tolerance,
        settings.max_iterations,
    )
    columns = [response.lipschitz, gradient.norm, response.output_variance, *jacobian]
    return torch.stack([c.cpu().double() for c in [*columns, gradient.loss]], 1)


def _check(values: torch.Tensor, tokens: Tokens, label: str, split: str) -> None:
    for row in (~values.isfinite()).any(1).nonzero().flatten().tolist():
        raise BadInput(
            f"{label}: NaN or Inf on {split} text {int(tokens.documents[row])}: try --dtype fp32, "
            "or check the weights"
        )


def load(model: str, options: Any, device: torch.device, dtype: torch.dtype) -> Reader:
    """A model that can be differentiated twice."""
    loaded: nn.Module = loading.load_model(model, device, dtype, options.trust_remote_code)
    lipschitz.make_differentiable(loaded)
    return Reader(model, loaded)


# ── tables ────────────────────────────────────────────────────────────────────────────────────────


def summary_rows(texts: pd.DataFrame, seed: int) -> list[dict[str, Any]]:
    """Lines of lipschitzness_summary.csv from per_text.csv: one per model and split.

    Means over texts with 95 % intervals; standard deviations between texts (None for a single one).
    """
    rows = []
    for (model, data), part in texts.groupby(["model", "data"], sort=False):
        row: dict[str, Any] = {"model": model, "data": data}
        ends: dict[str, float] = {}
        for metric in METRICS:
            values = part[metric].dropna().astype(float).to_numpy()
            if not len(values):
                row |= {f"avg_{metric}": None, f"std_{metric}": None}
                continue
            found = mean_interval(values, seed)
            deviation = float(values.std(ddof=1)) if len(values) > 1 else None
            row |= {f"avg_{metric}": float(found.mean), f"std_{metric}": deviation}
            ends |= {f"avg_{metric}_low": float(found.low), f"avg_{metric}_high": float(found.high)}
        last = {key: row.pop(key) for key in ("avg_jacobian_norm", "std_jacobian_norm")}
        rows.append(row | ends | last | {"texts": len(part), "tokens": int(part["tokens"].sum())})
    return [_ordered(row) for row in rows]


def _ordered(row: dict[str, Any]) -> dict[str, Any]:
    """The columns that every reader expects first, then intervals and what is new."""
    first = ["model", "data"]
    first += [f"{kind}_{m}" for m in METRICS[:3] for kind in ("avg", "std")]
    ends = [f"avg_{m}_{end}" for m in METRICS[:3] for end in ("low", "high")]
    last = ["avg_jacobian_norm", "std_jacobian_norm"]
    last += ["avg_jacobian_norm_low", "avg_jacobian_norm_high", "texts", "tokens"]
    return {column: row.get(column) for column in [*first, *ends, *last]}


def changes(base: pd.DataFrame, changed: pd.DataFrame, seed: int) -> dict[str, Any]:
    """Change of each metric from A to B by split, over the same texts: paired intervals.

    `change` is the mean of B − A, `relative` that over the mean of A.
    """
    found: dict[str, Any] = {}
    for data, part in base.groupby("data", sort=False):
        pairs = part.merge(changed, on=["data", "text"], suffixes=("_a", "_b"))
        of_split: dict[str, Any] = {"texts": len(pairs)}
        for metric in METRICS:
            both = pairs[[f"{metric}_a", f"{metric}_b"]].dropna().astype(float).to_numpy()
            if not len(both):
                continue
            difference = both[:, 1] - both[:, 0]
            of_split[metric] = {"change": _named(mean_interval(difference, seed))}
            if (both[:, 0] > 0).all():
                relative = ratio_interval(difference, both[:, 0], seed)
                of_split[metric]["relative"] = _named(relative)
        found[str(data)] = of_split
    return found


def _named(interval: Any) -> dict[str, float]:
    return {name: float(value) for name, value in interval._asdict().items()}

"""Step 12: the sensitivity of one model on a sample of texts, and its change from A to B."""

import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from model_diffs.activations.passes import Reader, SplitPass
from model_diffs.activations.tokens import TokenBatch, Tokens, padded_batches
from model_diffs.core import naming
from model_diffs.core.errors import BadInput
from model_diffs.core.progress import progress
from model_diffs.data.texts import length_batches
from model_diffs.diagnostics import lipschitz
from model_diffs.models import devices
from model_diffs.stats.intervals import mean_interval, ratio_interval

_FIRST = ("lipschitz", "gradient_norm", "output_variance")
_BESIDE = tuple(
    f"{metric}_{where}"
    for metric in ("lipschitz", "jacobian_norm")
    for where in ("relative", "logits", "logits_relative")
)
METRICS = (*_FIRST, "jacobian_norm", *_BESIDE)
MEASURED = (*METRICS[:4], "jacobian_iterations", "jacobian_converged", "loss", *_BESIDE)
"""Of per_text.csv, after `model`, `data`, `text` (its position in the split) and counted `tokens`.
Gradient norm and mean next-token loss (nats) are empty where a text has a single token."""
COLUMNS = (
    *("model", "data", *(f"{kind}_{metric}" for metric in _FIRST for kind in ("avg", "std"))),
    *(f"avg_{metric}_{end}" for metric in _FIRST for end in ("low", "high")),
    *("avg_jacobian_norm", "std_jacobian_norm", "avg_jacobian_norm_low", "avg_jacobian_norm_high"),
    *("texts", "tokens"),
    *(
        name
        for metric in _BESIDE
        for name in (f"avg_{metric}", f"std_{metric}", f"avg_{metric}_low", f"avg_{metric}_high")
    ),
)
"""Of lipschitzness_summary.csv."""
# Batches are cut so that logits of perturbed passes and graphs kept for derivatives have at most
# so many entries.
_LOGITS = 1 << 26
_STATES = 1 << 24


class Settings(NamedTuple):
    """The options of step 12 that decide how sensitivity is measured."""

    epsilon: float
    num_perturbations: int
    tol: float
    max_iters: int
    seed: int


def spread_sample(tokens: Tokens, count: int, seed: int) -> Tokens:
    """`count` documents at even distances from a seeded first one; all where `count` is 0."""
    total = len(tokens.ids)
    if count == 0 or count >= total:
        return tokens
    offset = np.random.default_rng(seed).random()
    rows = np.floor((np.arange(count) + offset) * total / count).astype(int)
    ids, starts = [tokens.ids[row] for row in rows], [tokens.starts[row] for row in rows]
    return tokens._replace(ids=ids, starts=starts, documents=tokens.documents[rows])


def measure(reader: Reader, one: SplitPass, settings: Settings) -> pd.DataFrame:
    """per_text.csv of one model on one split, documents in their order.

    The model comes from `lipschitz.make_differentiable`. Processes share the texts and all get all
    rows. Raises BadInput where an output is not finite.
    """
    label, split, tokens = naming.model_label(reader.name), one.split.name, one.tokens
    # Fewer texts at a time where the graph kept for their derivatives would be large.
    per_token = reader.anatomy.embedding.weight.shape[1] * len(reader.anatomy.blocks)
    most = _STATES // (max(tokens.lengths) * per_token)
    order = length_batches(tokens.lengths, max(1, min(one.batch_size, most)))
    bar = progress(devices.share(order), f"{label} {split}", unit="batch")
    values = torch.zeros(len(tokens.ids), len(MEASURED), dtype=torch.float64)
    for at in padded_batches(tokens, bar, one.pad_id, one.device):
        seeds = [_seed(settings.seed, split, int(tokens.documents[row])) for row in at.rows]
        values[at.rows] = _measure_batch(reader, at, seeds, settings)
    found = pd.DataFrame(devices.sum_over_processes(values).numpy(), columns=[*MEASURED])
    finite = np.isfinite(found.drop(columns=["gradient_norm", "loss"])).all(axis=1)
    if not finite.all():
        text, advice = tokens.documents[finite.argmin()], "use --dtype fp32, or check the weights"
        raise BadInput(f"{label}: NaN or Inf on {split} text {text}: {advice}")
    places = {"model": label, "data": split, "text": tokens.documents, "tokens": tokens.counts}
    kinds = {"jacobian_iterations": int, "jacobian_converged": bool}
    return pd.DataFrame(places).join(found.astype(kinds))


def _seed(seed: int, split: str, document: int) -> int:
    """A seed for each document, the same for every model."""
    digest = hashlib.sha256(f"{seed} {split} {document}".encode()).digest()
    return int.from_bytes(digest[:6], "big")


def _measure_batch(
    reader: Reader, at: TokenBatch, seeds: Sequence[int], settings: Settings
) -> Tensor:
    """MEASURED of the texts of a batch, `[B, 13]`."""
    x, counted = reader.anatomy.embedding(at.batch.input_ids).detach(), at.counted
    if not bool((torch.linalg.vector_norm(x.float(), dim=-1)[counted] > 0).all()):
        raise BadInput(f"{reader.name}: a token's embedding is zero, no distance is relative to it")

    def outputs(embedded: Tensor) -> lipschitz.Output:
        mask = at.batch.attention_mask.repeat(len(embedded) // len(x), 1)
        return lipschitz.run(reader.model, reader.anatomy, embedded, mask)

    count = settings.num_perturbations
    deltas = lipschitz.perturbations(x, counted, settings.epsilon, count, seeds)
    per_pass = max(1, _LOGITS // (counted.numel() * reader.anatomy.head.weight.shape[0]))
    with torch.no_grad():
        response = lipschitz.respond(outputs, x, counted, deltas, per_pass)
    gradient, loss = lipschitz.gradient_norms(outputs, x, at.batch, counted)
    hidden, logits = (
        lipschitz.jacobian_norms(f, x, counted, seeds, settings.tol, settings.max_iters)
        for f in (
            lipschitz.trunk_function(reader.anatomy, at.batch.attention_mask),
            lipschitz.logits_function(reader.model, at.batch.attention_mask),
        )
    )
    columns = [response.hidden, gradient, response.variance, hidden.value]
    columns += [hidden.iterations, hidden.converged & logits.converged, loss]
    scales = response.hidden_scale.cpu(), response.logits_scale.cpu()
    pairs = (response.hidden.cpu(), response.logits.cpu()), (hidden.value, logits.value)
    for of_hidden, of_logits in pairs:
        columns += [of_hidden * scales[0], of_logits, of_logits * scales[1]]
    return torch.stack([column.cpu().double() for column in columns], 1)


# ── tables ────────────────────────────────────────────────────────────────────────────────────────


def summary_rows(texts: pd.DataFrame, seed: int) -> list[dict[str, Any]]:
    """Rows of lipschitzness_summary.csv from per_text.csv: one per model and split.

    Means over texts with 95 % intervals; standard deviations over texts (None for a single one).
    """
    rows = []
    for (model, data), part in texts.groupby(["model", "data"], sort=False):
        row = {"model": model, "data": data, "texts": len(part), "tokens": part["tokens"].sum()}
        for metric in METRICS:
            values = part[metric].dropna().astype(float).to_numpy()
            if len(values):
                row |= mean_interval(values, seed).cells(f"avg_{metric}")
                row[f"std_{metric}"] = float(values.std(ddof=1)) if len(values) > 1 else None
        rows.append(row)
    return rows


def changes(base: pd.DataFrame, changed: pd.DataFrame, seed: int) -> dict[str, Any]:
    """Change of each metric from A to B by split, over the same texts: paired intervals.

    `change` is the mean of B − A, `relative` that divided by the mean of A.
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
            intervals = {"change": mean_interval(difference, seed)}
            if (both[:, 0] > 0).all():
                intervals["relative"] = ratio_interval(difference, both[:, 0], seed)
            of_split[metric] = {
                name: {end: float(value) for end, value in interval._asdict().items()}
                for name, interval in intervals.items()
            }
        found[str(data)] = of_split
    return found

"""Step 12: the sensitivity of one model on a sample of texts, and its change from A to B."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
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
from model_diffs.diagnostics import jacobian, lipschitz
from model_diffs.diagnostics.jacobian import Products
from model_diffs.models import devices
from model_diffs.stats.intervals import document_weights, mean_interval, ratio_interval
from model_diffs.stats.subsample import drawn, estimated

_FIRST = ("lipschitz", "gradient_norm", "output_variance")
_BESIDE = tuple(
    f"{metric}_{where}"
    for metric in ("lipschitz", "jacobian_norm")
    for where in ("relative", "logits", "logits_relative")
)
METRICS = (*_FIRST, "jacobian_norm", *_BESIDE)
MEASURED = (*METRICS[:4], "jacobian_iterations", "jacobian_converged", "loss", *_BESIDE)
"""Of per_text.csv, after `model`, `data`, `text` (its position in the split), counted `tokens` and
`derivatives` (1 where the text's derivatives were measured, else 0). Gradient norm and mean
next-token loss (nats) are empty where a text has a single token."""
JACOBIANS = tuple(name for name in METRICS if name.startswith("jacobian"))
"""Each also as `…_estimated` (`stats.subsample`), beside `lipschitz…`, of every text."""
DERIVED = ("gradient_norm", "loss", *(name for name in MEASURED if name.startswith("jacobian")))
"""Of these, empty where `derivatives` is 0."""
COLUMNS = (
    *("model", "data", *(f"{kind}_{metric}" for metric in _FIRST for kind in ("avg", "std"))),
    *(f"avg_{metric}_{end}" for metric in _FIRST for end in ("low", "high")),
    *("avg_jacobian_norm", "std_jacobian_norm", "avg_jacobian_norm_low", "avg_jacobian_norm_high"),
    *("texts", "tokens", "texts_derivatives"),
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
# Tokens of texts whose Jacobians are sought together: the slowest text holds up the others.
_TOGETHER = 256


class Settings(NamedTuple):
    """The options of step 12 that decide how sensitivity is measured."""

    epsilon: float
    num_perturbations: int
    tol: float
    max_iters: int
    seed: int
    derivatives: int | None = 0
    """Texts per split whose derivatives are measured, drawn at random; 0: all (`subsample`)."""


def spread(total: int, count: int, seed: int) -> list[int]:
    """`count` of `total` places evenly spread from a seeded first one; all where `count` is 0."""
    count = min(count or total, total)
    offset = np.random.default_rng(seed).random()
    return [int(place) for place in np.floor((np.arange(count) + offset) * total / count)]


def spread_sample(tokens: Tokens, count: int, seed: int) -> Tokens:
    """`count` documents at even distances from a seeded first one; all where `count` is 0."""
    rows = spread(len(tokens.ids), count, seed)
    if len(rows) == len(tokens.ids):
        return tokens
    ids, starts = [tokens.ids[row] for row in rows], [tokens.starts[row] for row in rows]
    return tokens._replace(ids=ids, starts=starts, documents=tokens.documents[rows])


@dataclass(frozen=True)
class Subject:
    """A model from `lipschitz.make_differentiable`, its head in short where it has one."""

    reader: Reader
    head: lipschitz.ShortHead | None

    @classmethod
    def of(cls, reader: Reader, one: SplitPass) -> "Subject":
        """A model; whether its head is linear is seen on a text of the split."""
        ids = one.tokens.ids[0]
        return cls(reader, lipschitz.short_head(reader.model, reader.anatomy, ids))


def measure(subject: Subject, one: SplitPass, settings: Settings) -> pd.DataFrame:
    """per_text.csv of one model on one split, documents in their order.

    Processes share the texts and all get all rows. Raises BadInput where an output is not finite.
    """
    reader, split, tokens = subject.reader, one.split.name, one.tokens
    label = naming.model_label(reader.name)
    derived = np.zeros(len(tokens.ids), bool)
    derived[drawn(len(tokens.ids), settings.derivatives, settings.seed)] = True
    order = _batches(reader, one, derived)
    bar = progress(devices.share(order), f"{label} {split}", unit="batch")
    values = torch.zeros(len(tokens.ids), len(MEASURED), dtype=torch.float64)
    for at in padded_batches(tokens, bar, one.pad_id, one.device):
        seeds = [_seed(settings.seed, split, int(tokens.documents[row])) for row in at.rows]
        columns = _measure_batch(subject, at, seeds, settings, bool(derived[at.rows[0]]))
        for name, column in columns.items():
            values[at.rows, MEASURED.index(name)] = column.cpu().double()
    found = pd.DataFrame(devices.sum_over_processes(values).numpy(), columns=[*MEASURED])
    finite = np.isfinite(found.drop(columns=["gradient_norm", "loss"])).all(axis=1)
    if not finite.all():
        text, advice = tokens.documents[finite.argmin()], "use --dtype fp32, or check the weights"
        raise BadInput(f"{label}: NaN or Inf on {split} text {text}: {advice}")
    found.loc[~derived, [*DERIVED]] = np.nan
    places = {"model": label, "data": split, "text": tokens.documents, "tokens": tokens.counts}
    for metric in JACOBIANS:
        beside = found[metric.replace("jacobian_norm", "lipschitz")]
        found[f"{metric}_estimated"] = estimated(found[metric].to_numpy(), beside.to_numpy())
    kinds = {"jacobian_iterations": "Int64", "jacobian_converged": "boolean"}
    table = pd.DataFrame({**places, "derivatives": derived.astype(int)})
    return table.join(found.astype(kinds))


def _batches(reader: Reader, one: SplitPass, derived: np.ndarray) -> list[list[int]]:
    """Rows in batches, of texts whose derivatives are measured or of such where they are not.

    Graphs kept for derivatives are cut by their size and by `_TOGETHER`.
    """
    lengths, order = one.tokens.lengths, []
    per_token = reader.anatomy.embedding.weight.shape[1] * len(reader.anatomy.blocks)
    for kind in (True, False):
        rows = np.flatnonzero(derived == kind)
        of_kind = [lengths[row] for row in rows]
        if not of_kind:
            continue
        most = _STATES // (max(of_kind) * per_token)
        if kind:
            most = min(most, _TOGETHER // max(of_kind))
        batches = length_batches(of_kind, max(1, min(one.batch_size, most)))
        order += [[int(rows[i]) for i in batch] for batch in batches]
    return order


def _seed(seed: int, split: str, document: int) -> int:
    """A seed for each document, the same for every model."""
    digest = hashlib.sha256(f"{seed} {split} {document}".encode()).digest()
    return int.from_bytes(digest[:6], "big")


def _measure_batch(
    subject: Subject, at: TokenBatch, seeds: Sequence[int], settings: Settings, derived: bool
) -> dict[str, Tensor]:
    """MEASURED of the texts of a batch, `[B]` each; without DERIVED unless `derived`."""
    reader, head = subject.reader, subject.head
    x, counted = reader.anatomy.embedding(at.batch.input_ids).detach(), at.counted
    if not bool((torch.linalg.vector_norm(x.float(), dim=-1)[counted] > 0).all()):
        raise BadInput(f"{reader.name}: a token's embedding is zero, no distance is relative to it")

    def outputs(embedded: Tensor) -> lipschitz.Output:
        mask = at.batch.attention_mask.repeat(len(embedded) // len(x), 1)
        if head is None:
            return lipschitz.run(reader.model, reader.anatomy, embedded, mask)
        hidden = lipschitz.trunk_function(reader.anatomy, mask)(embedded)
        return lipschitz.Output(hidden, head.logits(hidden))

    count = settings.num_perturbations
    deltas = lipschitz.perturbations(x, counted, settings.epsilon, count, seeds)
    width = reader.anatomy.head.weight.shape[0] if head is None else x.shape[2]
    per_pass = max(1, _LOGITS // (counted.numel() * width))
    products, centre, vocabulary = None, None, None
    if head is not None:
        vocabulary = head.vocabulary
        if derived:
            f = lipschitz.trunk_function(reader.anatomy, at.batch.attention_mask)
            products = jacobian.products(f, x, counted)
            centre = lipschitz.Output(products.output, head.logits(products.output))
    with torch.no_grad():
        found = lipschitz.respond(outputs, x, counted, deltas, per_pass, vocabulary, centre)
    values = {"lipschitz": found.hidden, "lipschitz_logits": found.logits}
    values["output_variance"] = found.variance
    if derived:
        values |= _derivatives(subject, at, x, products, found.first, settings)
    scales = {"": found.hidden_scale.cpu(), "_logits": found.logits_scale.cpu()}
    for metric in ("lipschitz", *(["jacobian_norm"] if derived else [])):
        for where, scale in scales.items():
            values[f"{metric}{where}_relative"] = values[f"{metric}{where}"].cpu() * scale
    return values


def _derivatives(
    subject: Subject,
    at: TokenBatch,
    x: Tensor,
    products: Products | None,
    start: Tensor,
    settings: Settings,
) -> dict[str, Tensor]:
    """Gradient norm, loss and norms of both Jacobians of a batch; the search is from `start`.

    `products` with the Jacobian of the states, where the head is linear: one graph serves all.
    """
    (model, anatomy), mask = (subject.reader.model, subject.reader.anatomy), at.batch.attention_mask
    limits = settings.tol, settings.max_iters
    if subject.head is not None and products is not None:
        gradient, loss = lipschitz.gradient_norms(
            anatomy.head, products.output, at.batch, at.counted, products.gradient
        )
        hidden, logits = jacobian.jacobian_norms(
            products, start, (torch.clone, subject.head.metric), *limits
        )
    else:  # the logits are another function, and their change under a perturbation not at hand
        f, g = lipschitz.trunk_function(anatomy, mask), lipschitz.logits_function(model, mask)
        gradient, loss = lipschitz.gradient_norms(g, x, at.batch, at.counted)
        starts = start, anatomy.head(start.to(x.dtype))
        hidden, logits = (
            jacobian.jacobian_norms(
                jacobian.products(of, x, at.counted), first, [torch.clone], *limits
            )[0]
            for of, first in zip((f, g), starts, strict=True)
        )
    return {
        "gradient_norm": gradient,
        "loss": loss,
        "jacobian_norm": hidden.value,
        "jacobian_norm_logits": logits.value,
        "jacobian_iterations": hidden.iterations,
        "jacobian_converged": hidden.converged & logits.converged,
    }


# ── tables ────────────────────────────────────────────────────────────────────────────────────────


def summary_rows(texts: pd.DataFrame, seed: int) -> list[dict[str, Any]]:
    """Rows of lipschitzness_summary.csv from per_text.csv: one per model and split.

    Means over texts with 95 % intervals; standard deviations over texts (None for a single one).
    """
    rows = []
    for (model, data), part in texts.groupby(["model", "data"], sort=False):
        row = {"model": model, "data": data, "texts": len(part), "tokens": part["tokens"].sum(),
               "texts_derivatives": int(part["derivatives"].sum())}  # fmt: skip
        for metric in METRICS:
            values = part[metric].dropna().astype(float).to_numpy()
            if len(values):
                meant = part[_column(metric)].dropna().astype(float)
                row |= mean_interval(meant, seed).cells(f"avg_{metric}")
                row[f"std_{metric}"] = float(values.std(ddof=1)) if len(values) > 1 else None
        rows.append(row)
    return rows


def _column(metric: str) -> str:
    """What means of a metric are taken of."""
    return f"{metric}_estimated" if metric in JACOBIANS else metric


def changes(base: pd.DataFrame, changed: pd.DataFrame, seed: int) -> dict[str, Any]:
    """Change of each metric from A to B by split, over the same texts: paired intervals.

    `change` is the mean of B − A, `relative` that divided by the mean of A.
    """
    found: dict[str, Any] = {}
    for data, part in base.groupby("data", sort=False):
        pairs = part.merge(changed, on=["data", "text"], suffixes=("_a", "_b"))
        derived = int((pairs["derivatives_a"] * pairs["derivatives_b"]).sum())
        of_split: dict[str, Any] = {"texts": len(pairs), "texts_derivatives": derived}
        for metric in METRICS:
            columns = [f"{_column(metric)}_{side}" for side in "ab"]
            both = pairs[columns].dropna().astype(float).to_numpy()
            if not len(both):
                continue
            difference = both[:, 1] - both[:, 0]
            intervals = {"change": mean_interval(difference, seed)}
            base_means = both[:, 0]
            if metric in JACOBIANS:  # of a single text an estimate may be negative
                base_means = document_weights(len(both), seed) @ both[:, 0]
            if (base_means > 0).all():
                intervals["relative"] = ratio_interval(difference, both[:, 0], seed)
            of_split[metric] = {
                name: {end: float(value) for end, value in interval._asdict().items()}
                for name, interval in intervals.items()
            }
        found[str(data)] = of_split
    return found

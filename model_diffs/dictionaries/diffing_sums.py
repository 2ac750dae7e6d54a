"""What a model's codes add up to, batch by batch, and the changes between two models.

Nothing here grows with the number of tokens: per latent there are a few sums over documents and the
few documents in which it is most active. A document's sum of a latent's coefficients is one
observation; tokens of a document are not independent.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from model_diffs.dictionaries.pursuit import Codes

# With five documents not even a change of one sign in all of them has a p-value below 0.05
# (sign test: 2 · 2⁻⁵ = 0.0625), so a latent must occur in six to be tested.
LEAST_DOCUMENTS = 6
Array = NDArray[np.float64]


class BatchCodes(NamedTuple):
    """One model's codes of a batch, B documents, m latents, summed within documents."""

    sums: Tensor
    """`[B, m]` fp64, Σ coefficients over a document's tokens."""
    fires: Tensor
    """`[B, m]` fp64, tokens of a document that use the latent."""
    peaks: Tensor
    """`[B, m]` fp32, highest coefficient in a document; −inf where the latent is not used."""
    peak_positions: Tensor
    """`[B, m]` int64, position of that token in its document."""
    unexplained: Tensor
    """`[B]` fp64, Σ FVU over a document's tokens."""
    counts: Tensor
    """`[B]` fp64, tokens of each document that count."""


def sum_codes(
    codes: Codes, documents: Tensor, positions: Tensor, batch: int, latents: int
) -> BatchCodes:
    """Sum merged codes `[n, k]` of tokens that are of `documents` `[n]`, at `positions` `[n]`."""
    indices, values, fvu = (part.cpu() for part in codes)
    place = (documents[:, None] * latents + indices).flatten()
    used = (values != 0).flatten()
    place, flat = place[used], values.flatten()[used]
    where = positions[:, None].expand_as(indices).flatten()[used]
    size = batch * latents
    sums = torch.zeros(size, dtype=torch.float64).index_add_(0, place, flat.double())
    fires = torch.bincount(place, minlength=size).double()
    peaks = torch.full((size,), -torch.inf).scatter_reduce_(0, place, flat, "amax")
    # Of equal peaks, the last position: any choice that does not depend on order will do.
    at_peak = torch.where(flat == peaks[place], where, -1)
    peak_positions = torch.full((size,), -1).scatter_reduce_(0, place, at_peak, "amax")
    unexplained = torch.zeros(batch, dtype=torch.float64).index_add_(0, documents, fvu.double())
    counts = torch.bincount(documents, minlength=batch).double()
    shape = (batch, latents)
    return BatchCodes(
        sums.view(shape),
        fires.view(shape),
        peaks.view(shape),
        peak_positions.view(shape),
        unexplained,
        counts,
    )


class Contexts(NamedTuple):
    """The documents in which each latent is most active: `[C, m]`, highest first."""

    values: Tensor
    """fp32; −inf where there are fewer."""
    documents: Tensor
    positions: Tensor


@dataclass
class ModelTotals:
    """One model's sums over all documents."""

    latents: int
    sources: Tensor
    """`[documents]` number of the data set that each document is of."""
    contexts: int
    """How many documents are kept per latent."""
    tokens: float = 0.0
    sums: Tensor = field(init=False)
    fires: Tensor = field(init=False)
    unexplained: Tensor = field(init=False)
    """`[documents]` Σ FVU, for its interval."""
    counts: Tensor = field(init=False)
    activity: Tensor = field(init=False)
    """`[data sets, m]` Σ over documents of |Σ coefficients|."""
    top: Contexts = field(init=False)

    def __post_init__(self) -> None:
        self.sums, self.fires = torch.zeros(2, self.latents, dtype=torch.float64).unbind()
        documents, count = len(self.sources), int(self.sources.max()) + 1
        self.unexplained, self.counts = torch.zeros(2, documents, dtype=torch.float64).unbind()
        self.activity = torch.zeros(count, self.latents, dtype=torch.float64)
        shape = (self.contexts, self.latents)
        nowhere = torch.full(shape, -1)
        self.top = Contexts(torch.full(shape, -torch.inf), nowhere, nowhere.clone())

    def add(self, codes: BatchCodes, rows: list[int]) -> None:
        """Add a batch of the documents `rows`."""
        self.sums += codes.sums.sum(0)
        self.fires += codes.fires.sum(0)
        self.tokens += float(codes.counts.sum())
        where = torch.tensor(rows)
        self.unexplained[where] = codes.unexplained
        self.counts[where] = codes.counts
        self.activity.index_add_(0, self.sources[where], codes.sums.abs())
        values = torch.cat([self.top.values, codes.peaks])
        documents = torch.cat([self.top.documents, where[:, None].expand_as(codes.peaks)])
        positions = torch.cat([self.top.positions, codes.peak_positions])
        order = values.argsort(dim=0, descending=True, stable=True)[: self.contexts]
        chosen = (part.gather(0, order) for part in (values, documents, positions))
        self.top = Contexts(*chosen)

    @property
    def source_tokens(self) -> Tensor:
        """`[data sets]` tokens that counted."""
        return torch.zeros(len(self.activity), dtype=torch.float64).index_add_(
            0, self.sources, self.counts
        )

    @property
    def mean(self) -> Array:
        """`[m]` mean coefficient over tokens, zeros included."""
        return (self.sums / self.tokens).numpy()

    @property
    def frequency(self) -> Array:
        """`[m]` share of tokens that use the latent."""
        return (self.fires / self.tokens).numpy()


class Changes(NamedTuple):
    """Changes from A to B per latent, `[m]` each."""

    difference: Array
    """Mean coefficient in B minus that in A, over all tokens."""
    std_error: Array
    """Of the difference, over documents; NaN where there is only one."""
    p_value: Array
    """Two-sided; NaN where too few documents have the latent to test it."""
    q_value: Array
    """Benjamini–Hochberg over the tested latents; NaN where not tested."""
    documents: NDArray[np.int64]
    """In which either model uses the latent."""


class PairedSums:
    """Sums over documents of d = (sum in B) − (sum in A), enough for means, errors and tests."""

    def __init__(self, latents: int) -> None:
        zeros = torch.zeros(4, latents, dtype=torch.float64)
        self.d, self.dd, self.dn, self.documents_with = zeros.unbind()
        self.tokens = self.tokens_squared = 0.0
        self.documents = 0

    def add(self, a: BatchCodes, b: BatchCodes) -> None:
        """Add a batch that both models have read."""
        d = b.sums - a.sums
        self.d += d.sum(0)
        self.dd += d.square().sum(0)
        self.dn += (d * a.counts[:, None]).sum(0)
        self.documents_with += ((a.fires > 0) | (b.fires > 0)).sum(0)
        self.tokens += float(a.counts.sum())
        self.tokens_squared += float(a.counts.square().sum())
        self.documents += len(a.counts)

    def changes(self) -> Changes:
        """Differences, their errors, and tests of no difference.

        The difference is a ratio of totals, Σ d / Σ n, with the error of its linearisation (Cochran
        1977, eq. 2.39). The test is Student's t of d over the documents that have the latent: where
        both models are alike, d is symmetric about 0 whatever documents those are, while all other
        documents would only make a rare latent look better measured than it is. No p-value is below
        what the agreement of all signs has.
        """
        d, dd, dn, m = (x.numpy() for x in (self.d, self.dd, self.dn, self.documents_with))
        difference = d / self.tokens
        spread = dd - 2 * difference * dn + difference**2 * self.tokens_squared
        scale = self.documents / (self.documents - 1) if self.documents > 1 else np.nan
        std_error = np.sqrt(np.maximum(spread, 0.0) * scale) / self.tokens
        p = _t_test(d, dd, m)
        tested = ~np.isnan(p)
        q = np.full_like(p, np.nan)
        if tested.any():
            q[tested] = stats.false_discovery_control(p[tested], method="bh")
        return Changes(difference, std_error, p, q, m.astype(np.int64))


def _t_test(total: Array, squares: Array, count: Array) -> Array:
    """Two-sided p-values of mean 0 from Σ d, Σ d² and the number of d; NaN for too few."""
    p = np.full_like(total, np.nan)
    enough = count >= LEAST_DOCUMENTS
    d, dd, m = total[enough], squares[enough], count[enough]
    variance = np.maximum(dd - d**2 / m, 0.0) / (m - 1)
    t = np.abs(d) / np.sqrt(np.maximum(variance, 1e-12 * dd + np.finfo(float).tiny) * m)
    found = 2 * stats.t.sf(t, m - 1)
    # Where d is symmetric, m signs agree in one of 2^(m−1) cases, whatever the values are: texts
    # that begin alike give equal values, of which t would make far more.
    found = np.maximum(found, 2.0 ** (1 - m))
    found[dd == 0] = 1.0
    p[enough] = found
    return p

"""Sums over a model's codes, batch by batch, and the changes between two models.

Nothing here grows with the number of tokens: per latent there are a few sums over documents and the
few documents in which it is most active. A document's sum of a latent's coefficients is one
observation; tokens of a document are not independent.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
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
    """`[B]` fp64, counted tokens of each document."""

    def save(self, path: Path) -> None:
        """Write all fields; zeros take no room."""
        np.savez_compressed(path, **{name: x.numpy() for name, x in self._asdict().items()})

    @classmethod
    def load(cls, path: Path) -> "BatchCodes":
        """What `save` wrote."""
        with np.load(path, allow_pickle=False) as found:
            return cls(**{name: torch.from_numpy(found[name]) for name in cls._fields})


def sum_codes(codes: Codes, places: Tensor, batch: int, latents: int) -> BatchCodes:
    """Sum merged codes `[n, k]` of tokens at `places` `[n, 2]`: document of `batch`, position."""
    indices, values, fvu = (part.cpu() for part in codes)
    documents, positions = places.cpu().unbind(1)
    place = (documents[:, None] * latents + indices).flatten()
    used = (values != 0).flatten()
    place, flat = place[used], values.flatten()[used]
    where = positions[:, None].expand_as(indices).flatten()[used]
    size, shape = batch * latents, (batch, latents)
    peaks = torch.full((size,), -torch.inf).scatter_reduce_(0, place, flat, "amax")
    # Of equal peaks, the last position: any choice that does not depend on order will do.
    at_peak = torch.where(flat == peaks[place], where, -1)
    peak_positions = torch.full((size,), -1).scatter_reduce_(0, place, at_peak, "amax")
    zeros = torch.zeros(size, dtype=torch.float64)
    return BatchCodes(
        sums=zeros.index_add(0, place, flat.double()).view(shape),
        fires=torch.bincount(place, minlength=size).double().view(shape),
        peaks=peaks.view(shape),
        peak_positions=peak_positions.view(shape),
        unexplained=zeros[:batch].index_add(0, documents, fvu.double()),
        counts=torch.bincount(documents, minlength=batch).double(),
    )


class Contexts(NamedTuple):
    """The documents in which each latent is most active: `[C, m]`, highest first."""

    values: Tensor
    """fp32; −inf where there are fewer."""
    documents: Tensor
    positions: Tensor


class SparseActivations(NamedTuple):
    """Codes of n tokens, k slots each, in the order of documents and positions."""

    documents: Tensor
    """`[n]` row of the text in the data sets."""
    positions: Tensor
    """`[n]` position in the document."""
    indices: Tensor
    """`[n, k]` latents."""
    values: Tensor
    """`[n, k]` coefficients; 0 where a slot is not used."""


class ModelTotals:
    """One model's sums over all documents, and its changes from the base.

    `sources` `[documents]`: index of the data set that each is from; `contexts`: how many documents
    are kept per latent.
    """

    def __init__(self, latents: int, sources: Tensor, contexts: int) -> None:
        self.sources, self.contexts = sources.long(), contexts
        self.kept: list[SparseActivations] = []
        self.sums, self.fires = torch.zeros(2, latents, dtype=torch.float64)
        # A document's sum is d more than in the base and has n tokens: Σ d, Σ d², Σ d·n, and the
        # number of documents in which either model uses the latent.
        self.d, self.dd, self.dn, self.documents_with = torch.zeros(4, latents, dtype=torch.float64)
        # [documents]: Σ FVU and counted tokens.
        self.unexplained, self.counts = torch.zeros(2, len(sources), dtype=torch.float64)
        # [data sets, m]: Σ over documents of |Σ coefficients|.
        self.activity = torch.zeros(int(sources.max()) + 1, latents, dtype=torch.float64)
        nowhere = torch.full((contexts, latents), -1)
        self.top = Contexts(torch.full(nowhere.shape, -torch.inf), nowhere, nowhere)

    def add(self, codes: BatchCodes, base: BatchCodes, rows: list[int]) -> None:
        """Add a batch of the documents `rows`, and what the base's codes of it are."""
        self.sums += codes.sums.sum(0)
        self.fires += codes.fires.sum(0)
        d = codes.sums - base.sums
        self.d += d.sum(0)
        self.dd += d.square().sum(0)
        self.dn += (d * codes.counts[:, None]).sum(0)
        self.documents_with += ((base.fires > 0) | (codes.fires > 0)).sum(0)
        where = torch.tensor(rows)
        self.unexplained[where] = codes.unexplained
        self.counts[where] = codes.counts
        self.activity.index_add_(0, self.sources[where], codes.sums.abs())
        documents = where[:, None].expand_as(codes.peaks)
        batch = (codes.peaks, documents, codes.peak_positions)
        values, *_ = both = [torch.cat(parts) for parts in zip(self.top, batch, strict=True)]
        order = values.argsort(dim=0, descending=True, stable=True)[: self.contexts]
        self.top = Contexts(*(part.gather(0, order) for part in both))

    def keep(self, codes: Codes, places: Tensor, rows: NDArray[np.int64]) -> None:
        """Keep the codes themselves. `rows`: row of the text, per document of the batch."""
        documents, positions = places.cpu().unbind(1)
        found = (torch.from_numpy(rows)[documents], positions, codes.indices, codes.values)
        self.kept.append(SparseActivations(*(part.cpu() for part in found)))

    def activations(self) -> SparseActivations | None:
        """All codes, in reading order; None where they were not kept."""
        if not self.kept:
            return None
        parts = SparseActivations(*(torch.cat(part) for part in zip(*self.kept, strict=True)))
        order = np.lexsort((parts.positions, parts.documents))
        return SparseActivations(*(part[order] for part in parts))

    @property
    def mean(self) -> Array:
        """`[m]` mean coefficient over tokens, zeros included."""
        return (self.sums / self.counts.sum()).numpy()

    @property
    def frequency(self) -> Array:
        """`[m]` share of tokens that use the latent."""
        return (self.fires / self.counts.sum()).numpy()

    def changes(self) -> pd.DataFrame:
        """A row per latent: changes from the base and tests of no change.

        `difference` of mean coefficients over all tokens: Σ d / Σ n, with the `std_error` of the
        linearised ratio (Cochran 1977, eq. 2.39), NaN for a single document. `p_value`: Student's
        t, two-sided, of d over the `documents` in which either model uses the latent; NaN for too
        few. If the models are alike, d is symmetric about 0 in any choice of documents, whereas all
        other documents would only make a rare latent look better measured than it is. `q_value`:
        Benjamini–Hochberg over the tested latents; NaN for others.
        """
        d, dd, dn, m = (x.numpy() for x in (self.d, self.dd, self.dn, self.documents_with))
        n = self.counts[self.counts > 0].numpy()
        difference = d / n.sum()
        spread = dd - 2 * difference * dn + difference**2 * np.square(n).sum()
        scale = len(n) / (len(n) - 1) if len(n) > 1 else np.nan
        std_error = np.sqrt(np.maximum(spread, 0.0) * scale) / n.sum()
        tested = m >= LEAST_DOCUMENTS
        p, q = np.full((2, len(d)), np.nan)
        if tested.any():
            p[tested] = _p_values(d[tested], dd[tested], m[tested])
            q[tested] = stats.false_discovery_control(p[tested], method="bh")
        columns = {"difference": difference, "std_error": std_error, "p_value": p, "q_value": q}
        return pd.DataFrame({**columns, "documents": m.astype(np.int64)})


def _p_values(d: Array, dd: Array, m: Array) -> Array:
    """Two-sided p-values of mean 0 from Σ d, Σ d² and the number of documents."""
    variance = np.maximum(dd - d**2 / m, 0.0) / (m - 1)
    t = np.abs(d) / np.sqrt(np.maximum(variance, 1e-12 * dd + np.finfo(float).tiny) * m)
    # If d is symmetric, m signs agree with chance 2^(1−m), whatever the values are: texts that
    # begin alike give equal values, for which t would be far too small a p-value.
    return np.where(dd == 0, 1.0, np.maximum(2 * stats.t.sf(t, m - 1), 2.0 ** (1 - m)))

"""Sums over a model's codes, batch by batch, and the changes between two models.

Nothing here grows with the number of tokens: per latent there are a few sums over documents and the
few documents in which it is most active. A document's sum of a latent's coefficients is one
observation; tokens of a document are not independent.
"""

from pathlib import Path
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
    """`[B]` fp64, counted tokens of each document."""

    def save(self, path: Path) -> None:
        """Write what `PairedSums` needs of a base; zeros take no room."""
        arrays = {name: getattr(self, name).numpy() for name in ("sums", "fires", "counts")}
        np.savez_compressed(path, **arrays)

    @classmethod
    def load(cls, path: Path) -> "BatchCodes":
        """What `save` wrote; peaks and fit are empty."""
        nothing = torch.empty(0)
        with np.load(path, allow_pickle=False) as found:
            sums, fires, counts = (torch.from_numpy(found[n]) for n in ("sums", "fires", "counts"))
        return cls(sums, fires, nothing, nothing, nothing, counts)


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
    """One model's sums over all documents.

    `sources` `[documents]`: index of the data set that each is from; `contexts`: how many documents
    are kept per latent; `paired`: sums against the base, None for the base itself.
    """

    def __init__(
        self,
        latents: int,
        sources: Tensor,
        contexts: int,
        paired: "PairedSums | None" = None,
    ) -> None:
        self.sources, self.contexts, self.paired = sources.long(), contexts, paired
        self.tokens = 0.0
        self.kept: list[SparseActivations] = []
        self.sums, self.fires = torch.zeros(2, latents, dtype=torch.float64)
        # [documents]: Σ FVU and counted tokens.
        self.unexplained, self.counts = torch.zeros(2, len(sources), dtype=torch.float64)
        # [data sets, m]: Σ over documents of |Σ coefficients|.
        self.activity = torch.zeros(int(sources.max()) + 1, latents, dtype=torch.float64)
        nowhere = torch.full((contexts, latents), -1)
        self.top = Contexts(torch.full(nowhere.shape, -torch.inf), nowhere, nowhere.clone())

    def add(self, codes: BatchCodes, rows: list[int]) -> None:
        """Add a batch of the documents `rows`."""
        self.sums += codes.sums.sum(0)
        self.fires += codes.fires.sum(0)
        self.tokens += float(codes.counts.sum())
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
        where = torch.from_numpy(rows)[documents]
        kept = SparseActivations(where, positions, codes.indices.cpu(), codes.values.cpu())
        self.kept.append(kept)

    def activations(self) -> SparseActivations | None:
        """All codes, in reading order; None where they were not kept."""
        if not self.kept:
            return None
        parts = SparseActivations(*(torch.cat(part) for part in zip(*self.kept, strict=True)))
        longest = int(parts.positions.max()) + 1
        order = (parts.documents * longest + parts.positions).argsort()
        return SparseActivations(*(part[order] for part in parts))

    @property
    def source_tokens(self) -> Array:
        """`[data sets]` counted tokens."""
        return np.bincount(self.sources, self.counts, len(self.activity)).astype(np.float64)

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
        1977, eq. 2.39). The test is Student's t of d over the documents that have the latent: if
        the models are alike, d is symmetric about 0 in any choice of documents, whereas all other
        documents would only make a rare latent look better measured than it is.
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
    # If d is symmetric, m signs agree with chance 2^(1−m), whatever the values are: texts that
    # begin alike give equal values, for which t would be far too small a p-value.
    found = np.maximum(found, 2.0 ** (1 - m))
    found[dd == 0] = 1.0
    p[enough] = found
    return p

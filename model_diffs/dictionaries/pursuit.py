"""Matching pursuit over a dictionary of unit atoms, many activations at once.

Mallat & Zhang 1993: take the atom with the largest |⟨residual, atom⟩|, subtract its coefficient
times the atom, and repeat. The products of x with all atoms are formed once; a step that takes atom
j with coefficient c changes the residual's products by −c·G[j], G = D Dᵀ, so that no later step
needs a product of matrices. A few rows of products at a time stay in the cache of a core, and
memory is bounded by them, not by activations × atoms.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from model_diffs.models.devices import wide

# Rows of products worked on at a time, in bytes: the cache of a core, or launches worth their time.
CHUNK_BYTES = {"cpu": 4 << 20, "cuda": 256 << 20}
# G is kept up to this size (16,384 atoms in fp32); beyond, every step forms the products anew.
GRAM_BYTES = 1 << 30
# A coefficient below this part of ‖x‖ is rounding of fp32 products: the pursuit has ended.
ROUNDING = 1e-6


class Codes(NamedTuple):
    """Sparse codes of n activations, k slots each."""

    indices: Tensor
    """`[n, k]` int64, atoms."""
    values: Tensor
    """`[n, k]` fp32, signed coefficients; 0 where a slot is not used."""
    fvu: Tensor
    """`[n]` fp32, ‖x − x̂‖² / ‖x‖², good to about 1e-6; 0 for an activation that is zero."""


def gram_of(atoms: Tensor) -> Tensor | None:
    """G = D Dᵀ `[m, m]` of atoms `[m, d]`; None where it would be too large to keep."""
    too_large = len(atoms) ** 2 * atoms.element_size() > GRAM_BYTES
    return None if too_large else atoms @ atoms.T


def chunk_rows(atoms: int, device: torch.device) -> int:
    """Activations encoded at a time: as many rows of fp32 products as the chunk's bytes hold."""
    return max(1, CHUNK_BYTES.get(device.type, CHUNK_BYTES["cuda"]) // (4 * max(1, atoms)))


def matching_pursuit(x: Tensor, atoms: Tensor, k: int, gram: Tensor | None) -> Codes:
    """k steps for every row of `x` `[n, d]` over unit `atoms` `[m, d]`, both fp32 on one device.

    Slot t of a row is its step t, so an atom may come twice (`merged` adds those up). Of atoms that
    tie, the first is taken. `gram` is `gram_of(atoms)`. No pick is made, and the slot is 0, where
    the coefficient would be rounding. Raises ValueError for other dtypes and shapes.
    """
    if x.dtype != torch.float32 or atoms.dtype != torch.float32 or x.shape[1] != atoms.shape[1]:
        raise ValueError(f"{x.dtype} {list(x.shape)} and {atoms.dtype} {list(atoms.shape)}")
    indices = torch.zeros(len(x), k, dtype=torch.int64, device=x.device)
    values = torch.zeros(len(x), k, device=x.device)
    norms = torch.linalg.vector_norm(x, dim=1)
    if len(atoms):
        rows = chunk_rows(len(atoms), x.device)
        buffers = torch.empty(2, min(rows, len(x)), len(atoms), device=x.device)
        parts = (part.split(rows) for part in (x, indices, values, ROUNDING * norms))
        for residual, js, cs, floor in zip(*parts, strict=True):
            products, work = buffers[:, : len(residual)]
            torch.mm(residual, atoms.T, out=products)
            for step in range(k):
                j, c = _best(products, work, floor)
                js[:, step], cs[:, step] = j, c
                if step == k - 1 or not bool(c.any()):
                    break
                if gram is not None:
                    torch.index_select(gram, 0, j, out=work)
                    products.addcmul_(work, c[:, None], value=-1)
                else:
                    residual = residual.addcmul(atoms[j], c[:, None], value=-1)
                    torch.mm(residual, atoms.T, out=products)
    # Every step takes c² off the residual's squared norm.
    energy = wide(norms).square()
    left = (energy - wide(values).square().sum(1)).clamp_min(0.0)
    fvu = torch.where(energy > 0, left / energy.clamp_min(torch.finfo(energy.dtype).tiny), 0.0)
    return Codes(indices, values, fvu.float().to(x.device))


def _best(products: Tensor, work: Tensor, floor: Tensor) -> tuple[Tensor, Tensor]:
    """Atom with the largest |product| of each row, and its product; 0 where below `floor`."""
    torch.abs(products, out=work)
    if products.device.type == "cpu":
        # NumPy's argmax uses the processor's vector units; torch's takes twice as long.
        j = torch.from_numpy(work.numpy().argmax(1))
    else:
        j = work.argmax(1)
    c = products.gather(1, j[:, None])[:, 0]
    return j, c.masked_fill(c.abs() <= floor, 0.0)


def merged(codes: Codes) -> Codes:
    """The same codes, the coefficients of a repeated atom added up in its first slot."""
    first = (codes.indices[:, :, None] == codes.indices[:, None]).byte().argmax(2)
    values = torch.zeros_like(codes.values).scatter_add_(1, first, codes.values)
    return Codes(codes.indices.masked_fill(values == 0, 0), values, codes.fvu)


def decode(codes: Codes, atoms: Tensor) -> Tensor:
    """x̂ `[n, d]` = Σ coefficient · atom, without activations × atoms in between."""
    return embedding_bag(codes.indices, atoms, per_sample_weights=codes.values, mode="sum")

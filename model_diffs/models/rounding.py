"""Weights rounded to few bits, as deployed quantised models have them."""

import torch
from torch import Tensor

BLOCK = 64
"""Weights that share a scale in NF4."""
# Quantiles of a normal distribution scaled to [-1, 1] (Dettmers et al. 2023, QLoRA, appendix E).
NF4 = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)


def absmax(W: Tensor, bits: int) -> Tensor:
    """W `[out, in]`, each row rounded to integer multiples of max |row| / (2^(bits − 1) − 1)."""
    scale = W.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
    scale = torch.where(scale > 0, scale, 1.0)  # a row of zeros stays one
    return (W / scale).round() * scale


def nf4(W: Tensor) -> Tensor:
    """W with each entry replaced by the nearest of the 16 levels, times max |·| of its 64
    neighbours along the rows (the last of a matrix may be fewer)."""
    flat = W.reshape(-1)
    padded = torch.nn.functional.pad(flat, (0, -len(flat) % BLOCK)).reshape(-1, BLOCK)
    scale = padded.abs().amax(1, keepdim=True)
    levels = torch.tensor(NF4, device=W.device)
    middles = (levels[1:] + levels[:-1]) / 2
    nearest = torch.bucketize(padded / torch.where(scale > 0, scale, 1.0), middles)
    return (levels[nearest] * scale).reshape(-1)[: len(flat)].reshape(W.shape)

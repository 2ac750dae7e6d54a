"""Changes of stored weights that need no training. Each registers itself by its name."""

import math
from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from model_diffs.models.architectures import OUTSIDE, Matrix
from model_diffs.models.checkpoints import chunks
from model_diffs.models.devices import pick_device
from model_diffs.models.rounding import absmax
from model_diffs.stats.spectra import singular_values
from model_diffs.unlearning.losses import generator_of
from model_diffs.unlearning.settings import Options

Edit: TypeAlias = Callable[[Matrix, Tensor, Tensor, Options], Tensor]
"""(matrix, W of the base [out, in], ΔW of --like or zero, both in fp32, options) → the ΔW of the
new model, in fp32."""
EDITS: dict[str, Edit] = {}


def edit(compute: Edit) -> Edit:
    """Decorator: register an edit under its function's name, a key of `core.methods.METHODS`."""
    EDITS[compute.__name__] = compute
    return compute


def frobenius(W: Tensor) -> float:
    """‖W‖_F in fp64, a few rows at a time."""
    return math.sqrt(math.fsum(float(part.double().square().sum()) for part in chunks(W)))


@edit
def noise(matrix: Matrix, W: Tensor, dW: Tensor, options: Options) -> Tensor:
    """A random change with ‖dW‖_F: independent Gaussian entries, or with `keep` dW's own singular
    values between random orthonormal singular vectors. Fixed by seed and name of the matrix."""
    norm = frobenius(dW)
    if norm == 0:
        return dW
    generator = generator_of(options.seed, "noise", matrix.name)
    if options.spectrum == "gaussian":
        found = torch.randn(dW.shape, generator=generator)
    else:
        device = pick_device(options.device)
        sigma = singular_values(dW.to(device)).to(device, torch.float32)
        left, right = (_orthonormal(side, len(sigma), generator).to(device) for side in dW.shape)
        found = ((left * sigma) @ right.T).cpu()
    return found.mul_(norm / frobenius(found))


@edit
def quantise(matrix: Matrix, W: Tensor, dW: Tensor, options: Options) -> Tensor:
    """Rounding to --bits per weight, scaled by each row's largest; inside blocks only."""
    return torch.zeros_like(W) if matrix.layer == OUTSIDE else absmax(W, options.bits) - W


def _orthonormal(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """Columns drawn evenly from all orthonormal ones (Haar): Q of a Gaussian matrix's QR with a
    positive diagonal of R (Mezzadri 2007)."""
    Q, R = torch.linalg.qr(torch.randn(rows, columns, generator=generator))
    return Q * R.diagonal().sign()

"""Spectra of covariances of hidden states."""

import numpy as np
from torch import Tensor

from model_diffs.stats.spectra import eigenvalues

# States are multiplied in fp32: a rank-deficient covariance has small negative eigenvalues, of the
# order of fp32's rounding relative to the largest one.
NEGATIVE = 1e-5


def covariance_spectrum(covariance: Tensor, name: str, mean_square: float = 0.0) -> np.ndarray:
    """Eigenvalues of a positive semi-definite matrix `[d, d]` fp64, falling, none negative.

    Values down to −NEGATIVE × the largest become 0; so does what fp32 rounding of the states makes
    of a point, `mean_square` the square of their mean. Raises ValueError, with `name`, for anything
    further below zero: the sums that the matrix is made of were wrong.
    """
    found = eigenvalues(covariance).cpu().numpy()[::-1]
    if not found[-1] >= -NEGATIVE * max(found[0], 1e-9 * mean_square):
        raise ValueError(
            f"{name} has the eigenvalue {found[-1]:.3g} beside {found[0]:.3g}, which no covariance "
            "has"
        )
    return np.maximum(found, 0.0)

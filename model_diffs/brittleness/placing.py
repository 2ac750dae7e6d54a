"""A model of one's own in the fitted picture: a predicted target with an interval."""

from typing import NamedTuple

import numpy as np
import pandas as pd

from model_diffs.brittleness.analysis import Settings, complete, fit, out_of_family
from model_diffs.brittleness.table import TARGET


class Placed(NamedTuple):
    """The prediction for one model."""

    predicted: float
    low: float
    high: float
    """95 % of the models of families that no fit had seen were within."""
    outside: tuple[str, ...]
    """Predictors beyond those of the models fitted."""
    leverage: float
    """Distance from the fitted models' centre: Mahalanobis, squared."""
    largest: float
    """The largest among them."""

    @property
    def within(self) -> bool:
        """Whether the model is like those that were fitted."""
        return not self.outside and self.leverage <= self.largest


def place(known: pd.DataFrame, own: pd.DataFrame, settings: Settings) -> Placed:
    """Place one row among removals. The interval is that of predictions out of family.

    Half of its width is the 95 % quantile of absolute errors (split conformal, with the rows'
    finite-sample correction).
    """
    columns = [*settings.predictors]
    known = complete(known, columns)
    errors = np.abs(
        known[TARGET].to_numpy(float) - out_of_family(known, known, columns, settings.ridge)
    )
    level = min(1.0, 0.95 * (1 + 1 / len(errors)))
    half = float(np.quantile(errors, level, method="higher"))
    fitted = fit(known, columns, settings.ridge)
    predicted = float(fitted.predict(own)[0])
    X, x = known[columns].to_numpy(float), own[columns].to_numpy(float)[0]
    beyond = (x < X.min(0)) | (x > X.max(0))
    Z, z = ((one - fitted.mean) / fitted.spread for one in (X, x))
    inverse = np.linalg.pinv(Z.T @ Z / len(Z))
    return Placed(
        predicted,
        predicted - half,
        predicted + half,
        tuple(c for c, out in zip(columns, beyond, strict=True) if out),
        float(z @ inverse @ z),
        float(np.einsum("ij,jk,ik->i", Z, inverse, Z).max()),
    )

"""A model of one's own in the fitted picture: a predicted target with an interval."""

import math
from typing import NamedTuple

import numpy as np
import pandas as pd

from model_diffs.brittleness.analysis import (
    Settings,
    complete,
    design,
    fit,
    out_of_family,
)
from model_diffs.brittleness.table import TARGET
from model_diffs.core.errors import BadInput


class Placed(NamedTuple):
    """The prediction for one model."""

    predicted: float
    low: float
    high: float
    """About 95 % of the models of families and worlds that no fit had seen were within; infinite
    where there are too few to say."""
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


def errors(known: pd.DataFrame, settings: Settings) -> np.ndarray:
    """|Error| of each row's prediction by a fit that saw neither its family nor its world."""
    found = np.full(len(known), np.nan)
    for world in known["world"].unique():
        own = (known["world"] == world).to_numpy()
        found[own] = out_of_family(
            known[~own], known[own], [*settings.predictors], settings.ridge
        ) - known.loc[own, TARGET].to_numpy(float)
    return np.abs(found)


def place(known: pd.DataFrame, own: pd.DataFrame, settings: Settings) -> Placed:
    """Place one row among removals. The interval is that of predictions of new families in new
    worlds.

    Half of its width is the ⌈0.95 (n + 1)⌉-th smallest of n absolute errors, as in split conformal
    prediction. Each error is of another fit and a family's errors are alike, so that 95 % is no
    guarantee. Raises BadInput where one of `known` has no other family in another world.
    """
    columns = [*settings.predictors]
    known = complete(known, columns)
    others = [
        ((known["world"] != one["world"]) & (known["model"] != one["model"])).any()
        for one in known[["world", "model"]].to_dict("records")
    ]
    if not others or not all(others):
        raise BadInput(
            "to place a model, each development world needs removals of another family in another "
            f"world, with a target and all of {', '.join(columns)}: there are {len(known)} "
            f"removals in {known['world'].nunique()} worlds"
        )
    ordered = np.sort(errors(known, settings))
    rank = math.ceil(0.95 * (len(ordered) + 1))
    half = float(ordered[rank - 1]) if rank <= len(ordered) else math.inf
    fitted = fit(known, columns, settings.ridge)
    predicted = float(fitted.predict(own)[0])
    X, x = design(known, columns), design(own, columns)[0]
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

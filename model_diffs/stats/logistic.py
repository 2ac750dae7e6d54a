"""L2-regularised logistic regressions, many at once: Newton's method on stacked problems.

Each minimises Σ log(1 + exp(−±(w·x + b))) + ‖w‖²/(2C) over the documents it is trained on, with a
free intercept b: scikit-learn's `LogisticRegression`. The problem is invariant to rotations of its
features, and w lies in the span of the training states; with fewer documents than dimensions it is
solved in coordinates along the documents, as many as there are of them. The classifier is the same.
"""

from typing import NamedTuple

import torch
from torch import Tensor

# Largest change of a log-odds by the last step: what is left after a Newton step is its square.
TOLERANCE = 1e-6
# Bytes of the stacked problems that are solved together.
_TOGETHER = 1 << 28
_HALVINGS = 40


class Fits(NamedTuple):
    """What the regressions say of all documents, those included that they were trained on."""

    scores: Tensor
    """`[problems, label sets, documents]` fp64: log-odds."""
    converged: Tensor
    """`[problems, label sets]` bool."""


def coordinates(states: Tensor, trained: Tensor, standardize: bool) -> Tensor:
    """Features of states `[n, d]` fp64 for a regression on those `trained` on `[n]`: `[n, r]`.

    Standardised to mean 0 and variance 1 on these, where asked; dimensions that are constant there
    become 0. With fewer of them than dimensions, coordinates along them: for T Tᵀ = U Λ Uᵀ those of
    a state x are x Tᵀ U/√Λ.
    """
    train = states[trained]
    if standardize:
        mean, scale = train.mean(0), train.std(0, correction=0)
        # Compared exactly: where all texts end in one token, its embedding is the same to the last
        # bit.
        varies = train.amin(0) < train.amax(0)
        scaled = (states - mean) / torch.where(varies, scale, 1.0)
        states = torch.where(varies, scaled, 0.0)
        train = states[trained]
    n, d = train.shape
    if d <= n:
        return states
    values, vectors = torch.linalg.eigh(train @ train.T)
    kept = values > n * torch.finfo(torch.float64).eps * values[-1].clamp_min(0)
    if not bool(kept.any()):  # all states are zero: only the intercept is left to fit
        return states.new_zeros(len(states), 1)
    return (states @ train.T) @ (vectors[:, kept] / values[kept].sqrt())


def fit_folds(
    states: Tensor, folds: Tensor, labels: Tensor, C: float, max_iter: int, standardize: bool
) -> Fits:
    """For each of S sets of states and each fold, one regression per label set on the other folds.

    States `[S, documents, d]` fp64, `folds` `[documents]` from 0, `labels` `[label sets,
    documents]`. Problems are in the order of states, then folds.
    """
    trained = folds != torch.arange(int(folds.max()) + 1, device=folds.device)[:, None]
    sets, documents = labels.shape
    most = max(1, _TOGETHER // (len(trained) * sets * documents * min(states.shape[1:]) * 8))
    scores, converged = [], []
    for group in states.split(most):
        features = [coordinates(one, train, standardize) for one in group for train in trained]
        width = max(one.shape[1] for one in features)
        pad = torch.nn.functional.pad
        X = torch.stack([pad(one, (0, width - one.shape[1])) for one in features])
        found = fit(X, trained.repeat(len(group), 1), labels, C, max_iter)
        scores.append(found.scores)
        converged.append(found.converged)
    return Fits(torch.cat(scores), torch.cat(converged))


class _Problems(NamedTuple):
    """P regressions for L label sets each."""

    X: Tensor
    """`[P, n, r + 1]` features, the last of them 1."""
    weight: Tensor
    """`[P, 1, n]` 1 where a document is trained on."""
    target: Tensor
    """`[L, n]` 0 or 1."""
    penalty: Tensor
    """`[r + 1]` on the squares of weights: none on the intercept."""

    @property
    def total(self) -> Tensor:
        """Documents trained on, `[P, 1]`."""
        return self.weight.sum(-1)

    def scores(self, theta: Tensor) -> Tensor:
        """Log-odds `[P, L, n]` for weights `[P, L, r + 1]`."""
        return theta @ self.X.mT

    def loss(self, theta: Tensor, scores: Tensor) -> Tensor:
        """Mean loss with its penalty, `[P, L]`."""
        losses = torch.nn.functional.softplus((1 - 2 * self.target) * scores)
        penalty = 0.5 * (self.penalty * theta**2).sum(-1)
        return ((self.weight * losses).sum(-1) + penalty) / self.total

    def gradient(self, theta: Tensor, scores: Tensor) -> Tensor:
        """Of the loss, `[P, L, r + 1]`."""
        residuals = self.weight * (scores.sigmoid() - self.target)
        return (residuals @ self.X + self.penalty * theta) / self.total[..., None]

    def newton_step(self, scores: Tensor, gradient: Tensor, wanted: Tensor) -> Tensor:
        """The gradient over the second derivative where that is `wanted` `[P, L]`, elsewhere 0."""
        p = scores.sigmoid()
        curvature = self.weight * p * (1 - p)
        # One at a time: weighted features of all would leave the processor's caches.
        places = wanted.nonzero().tolist()
        hessian = torch.stack([(self.X[i].mT * curvature[i, j]) @ self.X[i] for i, j in places])
        hessian += torch.diag(self.penalty)
        # Where all are told apart with certainty, the intercept has no curvature left.
        hessian.diagonal(dim1=-2, dim2=-1)[..., -1] += 1e-12
        slope = (gradient * self.total[..., None])[wanted]
        step = torch.zeros_like(gradient)
        step[wanted] = torch.linalg.solve(hessian, slope[..., None])[..., 0]
        return step

    def step_size(self, theta: Tensor, scores: Tensor, step: Tensor, slope: Tensor) -> Tensor:
        """The first of 1, ½, ¼, … that lowers each loss enough (Armijo), `[P, L, 1]`."""
        along, loss = self.scores(step), self.loss(theta, scores)
        t = torch.ones_like(loss)[..., None]
        for _ in range(_HALVINGS):
            lower = self.loss(theta - t * step, scores - t * along)
            enough = lower <= loss - 1e-4 * t[..., 0] * slope + 1e-14 * loss
            if bool(enough.all()):
                break
            t = torch.where(enough[..., None], t, t / 2)
        return t


def fit(X: Tensor, trained: Tensor, labels: Tensor, C: float, max_iter: int) -> Fits:
    """One regression per problem and label set: X `[P, n, r]`, `trained` `[P, n]`, `labels`
    `[L, n]`.

    Where the documents trained on have a single label, it is what is predicted.
    """
    weight, target = trained[:, None].double(), labels.double()
    penalty = torch.cat([X.new_full((X.shape[-1],), 1 / C), X.new_zeros(1)])
    of = _Problems(torch.cat([X, torch.ones_like(X[..., :1])], -1), weight, target, penalty)
    share = (weight * target).sum(-1) / of.total
    single = (share == 0) | (share == 1)
    theta = X.new_zeros(*single.shape, len(penalty))
    converged = single.clone()
    for _ in range(max_iter):
        if bool(converged.all()):
            break
        scores = of.scores(theta)
        gradient = of.gradient(theta, scores)
        step = of.newton_step(scores, gradient, ~converged)
        theta = theta - of.step_size(theta, scores, step, (gradient * step).sum(-1)) * step
        converged |= (weight * of.scores(step)).abs().amax(-1) <= TOLERANCE
    scores = of.scores(theta)
    sure = torch.where(share == 1, torch.inf, -torch.inf)[..., None]
    return Fits(torch.where(single[..., None], sure, scores), converged)

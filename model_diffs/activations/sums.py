"""Streaming sums over the tokens of a pass, one hidden state after another.

Sums are fp64 where the device has it. Products of states are formed in fp32 around a shift (the
mean of the first batch): subtracting a large mean afterwards would cancel the leading digits.
"""

import numpy as np
import torch
from torch import Tensor

from model_diffs.activations.saved import DifferenceStatistics, ModelStatistics
from model_diffs.activations.tokens import TokenBatch
from model_diffs.core.errors import BadInput
from model_diffs.models.devices import sum_over_processes, wide, wide_home
from model_diffs.stats.covariances import covariance_spectrum


def _zeros(device: torch.device, *shape: int) -> Tensor:
    """fp64 zeros on a device, on the CPU where it has no fp64."""
    return torch.zeros(shape, dtype=torch.float64, device=wide_home(device))


def _norm(x: Tensor, order: int = 2) -> Tensor:
    return torch.linalg.vector_norm(x, ord=order, dim=1)


class _Sums:
    """Named sums of each hidden state, on the device where the state is made."""

    def __init__(self, name: str, documents: int) -> None:
        self.name, self.documents = name, documents
        self.states: list[dict[str, Tensor]] = []

    def _add_to_documents(self, state: int, at: TokenBatch, **values: Tensor) -> None:
        """Add per-token values `[n]` to per-document sums `[documents]` in fp64."""
        if state == len(self.states):
            self.states.append({})
        sums = self.states[state]
        for name, value in values.items():
            if name not in sums:
                sums[name] = _zeros(value.device, self.documents)
            sums[name][at.rows] += wide(at.membership.to(value.device)) @ wide(value)

    def _total(self, name: str, dim: int = 1) -> np.ndarray:
        """A sum of all states, stacked along `dim`, over all processes."""
        stacked = torch.stack([sums[name].cpu() for sums in self.states], dim)
        return sum_over_processes(stacked).numpy()


class ModelSums(_Sums):
    """Accumulates everything that `ModelStatistics` holds."""

    count = 0
    """Counted tokens of this process."""

    def add(self, state: int, hidden: Tensor, h: Tensor, at: TokenBatch) -> None:
        """Add one state of one batch: `hidden` `[B, positions, d]`, and `h`, its counted tokens
        `[n, d]` in fp32."""
        l2 = _norm(h)
        self._add_to_documents(state, at, norm_l1=_norm(h, 1), norm_l2=l2)
        sums, width = self.states[state], h.shape[1]
        if "shift" not in sums:
            sums["shift"] = h.mean(0)
            sums["pooled"] = torch.zeros(self.documents, width)
            sums["last"] = torch.zeros(self.documents, width)
            sums["first_moment"] = _zeros(h.device, width)
            sums["second_moment"] = _zeros(h.device, width, width)
            sums["first_position"] = _zeros(h.device)
        if state == 0:
            self.count += len(h)
        sums["first_position"] += wide(l2[at.first.to(l2.device)].sum())
        membership = at.membership.to(h.device)
        sums["pooled"][at.rows] = (membership @ h / membership.sum(1, keepdim=True)).cpu()
        documents = torch.arange(len(at.rows), device=hidden.device)
        sums["last"][at.rows] = hidden[documents, at.last.to(hidden.device)].float().cpu()
        centred = h - sums["shift"]
        sums["first_moment"] += wide(centred.sum(0))
        sums["second_moment"] += (centred.T @ centred).to(sums["second_moment"].device)

    def check(self) -> None:
        """Raise BadInput where a state was not finite, naming model and state."""
        for state, sums in enumerate(self.states):
            if not sums["second_moment"].diagonal().sum().isfinite():
                raise BadInput(
                    f"{self.name}: NaN or Inf in hidden state {state} (0 is the embedding output); "
                    "try --dtype fp32, or check the weights"
                )

    def statistics(self, documents: np.ndarray, tokens: np.ndarray) -> ModelStatistics:
        """The finished statistics, equal on every process. Nothing can be added afterwards.

        Mean and scatter over all processes by Chan's update. Of a second moment only its spectrum
        is kept: all of them would be gigabytes.
        """
        states, width = len(self.states), len(self.states[0]["shift"])
        means, spectra = np.empty((states, width)), np.empty((states, width))
        count = sum_over_processes(torch.tensor(float(self.count), dtype=torch.float64))
        for state, sums in enumerate(self.states):
            first = sums["first_moment"].cpu()
            own_mean = sums["shift"].cpu().double() + first / self.count
            scatter = sums.pop("second_moment").cpu() - torch.outer(first, first) / self.count
            mean = sum_over_processes(own_mean * self.count) / count
            offset = own_mean - mean
            scatter = sum_over_processes(scatter + self.count * torch.outer(offset, offset))
            covariance = (scatter / count).to(wide_home(sums["shift"].device))
            label, size = f"{self.name}: the covariance of state {state}", float(mean @ mean)
            means[state] = mean.numpy()
            spectra[state] = covariance_spectrum(covariance, label, size)
        named = {name: self._total(name) for name in ("norm_l1", "norm_l2", "pooled", "last")}
        first_norm, others = self._total("first_position", 0), tokens.sum() - len(tokens)
        rest = named["norm_l2"].sum(0) - first_norm
        # Undefined where every document has a single counted token.
        ratio = (first_norm / len(tokens)) / (rest / others) if others else np.full(states, np.nan)
        named |= {"mean": means, "spectrum": spectra, "first_position_ratio": ratio}
        return ModelStatistics(documents, tokens, **named)


class DifferenceSums(_Sums):
    """Accumulates everything that `DifferenceStatistics` holds."""

    def add(self, state: int, h_a: Tensor, h_b: Tensor, at: TokenBatch) -> None:
        """Add one state of one batch: counted tokens of both models `[n, d]` in fp32."""
        h_a = h_a.to(h_b.device)
        change, norm_a = h_b - h_a, _norm(h_a)
        size = _norm(change)
        self._add_to_documents(
            state,
            at,
            dh_l1=_norm(change, 1),
            dh_l2=size,
            dh_rel=size / norm_a,
            # A zero state has no direction: not finite, which `statistics` reports.
            cosine=torch.linalg.vecdot(h_a, h_b) / (norm_a * _norm(h_b)),
        )

    def statistics(self, documents: np.ndarray, tokens: np.ndarray) -> DifferenceStatistics:
        """The finished statistics, equal on every process."""
        totals = {name: self._total(name) for name in self.states[0]}
        for name, values in totals.items():
            if not np.isfinite(values).all():
                state = int(np.argwhere(~np.isfinite(values))[0, 1])
                raise BadInput(
                    f"{self.name}: {name} is not finite at hidden state {state}: a state is zero"
                )
        return DifferenceStatistics(documents, tokens, **totals)

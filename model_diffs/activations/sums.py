"""Streaming sums over the tokens of a pass, one hidden state after another.

Sums are fp64 where the device has it. Products of states are formed in fp32 around a shift (the
mean of the first batch): subtracting a large mean afterwards would cancel the leading digits.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from model_diffs.activations.store import DifferenceStatistics, ModelStatistics
from model_diffs.activations.tokens import TokenBatch
from model_diffs.core.errors import BadInput
from model_diffs.models.devices import sum_over_processes


def _zeros(device: torch.device, *shape: int) -> Tensor:
    """fp64 zeros on a device, on the CPU where it has no fp64."""
    place = torch.device("cpu") if device.type == "mps" else device
    return torch.zeros(shape, dtype=torch.float64, device=place)


def norm(x: Tensor, order: int = 2) -> Tensor:
    """Norm of each row."""
    return torch.linalg.vector_norm(x, ord=order, dim=1)


class _DocumentSums:
    """Per-document fp64 sums `[documents, S]` under several names, one column per state."""

    def __init__(self, documents: int) -> None:
        self.columns: dict[str, list[Tensor]] = {}
        self.documents = documents

    def add(self, name: str, state: int, values: Tensor, at: TokenBatch) -> None:
        """Add per-token `values` `[n]` to their documents."""
        columns = self.columns.setdefault(name, [])
        if state == len(columns):
            columns.append(_zeros(values.device, self.documents))
        per_document = at.membership.to(values.device).double() @ values.double()
        columns[state][at.rows] += per_document.to(columns[state].device)

    def totals(self) -> dict[str, np.ndarray]:
        """Everything summed over processes, `[documents, S]` each."""
        return {
            name: sum_over_processes(torch.stack([c.cpu() for c in columns], 1)).numpy()
            for name, columns in self.columns.items()
        }


@dataclass
class _State:
    """Sums of one hidden state."""

    pooled: Tensor
    last: Tensor
    shift: Tensor
    first_moment: Tensor
    second_moment: Tensor
    first_position: Tensor

    @classmethod
    def start(cls, h: Tensor, documents: int) -> "_State":
        """Zeros for a state like `h` `[n, d]`, shifted by its mean."""
        width = h.shape[1]
        return cls(
            pooled=torch.zeros(documents, width),
            last=torch.zeros(documents, width),
            shift=h.mean(0),
            first_moment=_zeros(h.device, width),
            second_moment=_zeros(h.device, width, width),
            first_position=_zeros(h.device),
        )


class ModelSums:
    """Accumulates everything that `ModelStatistics` holds."""

    def __init__(self, name: str, documents: int) -> None:
        self.name, self.documents, self.count = name, documents, 0
        self.norms = _DocumentSums(documents)
        self.states: list[_State] = []

    def add(self, state: int, hidden: Tensor, h: Tensor, at: TokenBatch) -> None:
        """Add one state of one batch: `hidden` `[B, positions, d]`, and `h`, its counted tokens
        `[n, d]` in fp32."""
        if state == len(self.states):
            self.states.append(_State.start(h, self.documents))
        if state == 0:
            self.count += len(h)
        one, l2 = self.states[state], norm(h)
        device = one.first_moment.device
        self.norms.add("norm_l1", state, norm(h, 1), at)
        self.norms.add("norm_l2", state, l2, at)
        one.first_position += (l2 @ at.is_first.to(l2.device)).to(device, torch.float64)
        membership = at.membership.to(h.device)
        one.pooled[at.rows] = (membership @ h / membership.sum(1, keepdim=True)).cpu()
        documents = torch.arange(len(at.rows), device=hidden.device)
        one.last[at.rows] = hidden[documents, at.last.to(hidden.device)].float().cpu()
        centred = h - one.shift
        one.first_moment += centred.sum(0).to(device, torch.float64)
        one.second_moment += (centred.T @ centred).to(device)

    def check(self) -> None:
        """Raise BadInput where a state was not finite, naming model and state."""
        for state, one in enumerate(self.states):
            if not one.second_moment.diagonal().sum().isfinite():
                raise BadInput(
                    f"{self.name}: NaN or Inf in hidden state {state} (0 is the embedding output); "
                    "try --dtype fp32, or check the weights"
                )

    def _moments(self, one: _State) -> tuple[np.ndarray, np.ndarray]:
        """Mean `[d]` and scatter `[d, d]` of one state over all processes, by Chan's update.

        The state's own second moment is released: all of them twice would be gigabytes.
        """
        first = one.first_moment.cpu()
        own_mean = one.shift.cpu().double() + first / self.count
        scatter = one.second_moment.cpu() - torch.outer(first, first) / self.count
        one.second_moment = torch.empty(0)
        count = sum_over_processes(torch.tensor(float(self.count), dtype=torch.float64))
        mean = sum_over_processes(own_mean * self.count) / count
        offset = own_mean - mean
        scatter = sum_over_processes(scatter + self.count * torch.outer(offset, offset))
        return mean.numpy(), scatter.numpy()

    def statistics(self, documents: np.ndarray, tokens: np.ndarray) -> ModelStatistics:
        """The finished statistics, equal on every process. Nothing can be added afterwards."""
        norms = self.norms.totals()
        states, width = len(self.states), len(self.states[0].shift)
        mean, scatter = np.empty((states, width)), np.empty((states, width, width))
        for state, one in enumerate(self.states):
            mean[state], scatter[state] = self._moments(one)

        def over_processes(name: str, axis: int) -> np.ndarray:
            parts = [getattr(one, name).cpu() for one in self.states]
            return sum_over_processes(torch.stack(parts, axis)).numpy()

        first = over_processes("first_position", 0)
        others = tokens.sum() - len(tokens)
        rest = norms["norm_l2"].sum(0) - first
        # Undefined where every document has a single counted token.
        ratio = (first / len(tokens)) / (rest / others) if others else np.full(len(first), np.nan)
        return ModelStatistics(
            documents=documents,
            tokens=tokens,
            pooled=over_processes("pooled", 1),
            last=over_processes("last", 1),
            mean=mean,
            scatter=scatter,
            first_position_ratio=ratio,
            **norms,
        )


class DifferenceSums:
    """Accumulates everything that `DifferenceStatistics` holds."""

    def __init__(self, documents: int) -> None:
        self.sums = _DocumentSums(documents)

    def add(self, state: int, h_a: Tensor, h_b: Tensor, at: TokenBatch) -> None:
        """Add one state of one batch: counted tokens of both models `[n, d]` in fp32."""
        h_a = h_a.to(h_b.device)
        change, norm_a = h_b - h_a, norm(h_a)
        size = norm(change)
        self.sums.add("dh_l1", state, norm(change, 1), at)
        self.sums.add("dh_l2", state, size, at)
        self.sums.add("dh_rel", state, size / norm_a, at)
        # A zero state has no direction: the quotient is not finite, which `statistics` reports.
        self.sums.add("cosine", state, torch.linalg.vecdot(h_a, h_b) / (norm_a * norm(h_b)), at)

    def statistics(self, documents: np.ndarray, tokens: np.ndarray) -> DifferenceStatistics:
        """The finished statistics, equal on every process."""
        totals = self.sums.totals()
        for name, values in totals.items():
            if not np.isfinite(values).all():
                state = int(np.argwhere(~np.isfinite(values))[0, 1])
                raise BadInput(f"{name} is not finite at hidden state {state}: a state is zero")
        return DifferenceStatistics(documents=documents, tokens=tokens, **totals)

"""Streaming sums over the tokens of a pass: what one hidden state after another adds up to.

Sums are fp64 where the device has it. Products of states are formed in fp32 around a shift (the
mean of the first batch): second moments of states with a large mean would lose the digits that
matter when the mean is taken off afterwards.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from model_diffs.activations.store import DifferenceStatistics, ModelStatistics
from model_diffs.core.errors import BadInput
from model_diffs.models.devices import sum_over_processes
from model_diffs.models.loading import Batch


class Place(NamedTuple):
    """Where the tokens of one batch belong. n: counted tokens of the batch, B: its documents."""

    counted: Tensor
    """`[B, positions]` bool."""
    documents: Tensor
    """`[B]` row of each document in the sums."""
    membership: Tensor
    """`[B, n]` fp32, 1 where a token is of a document."""
    is_first: Tensor
    """`[n]` fp64, 1 at the first counted token of each document."""
    last: Tensor
    """`[B]` position of the last token that is not padding."""


def place_of(batch: Batch, starts: list[int], documents: list[int]) -> Place:
    """Mark the counted tokens of a right-padded batch: from `starts` to the end of the mask."""
    device = batch.input_ids.device
    positions = torch.arange(batch.input_ids.shape[1], device=device)
    start = torch.tensor(starts, device=device)[:, None]
    counted = batch.attention_mask.bool() & (positions >= start)
    owner = counted.nonzero()[:, 0]
    membership = torch.zeros(len(documents), len(owner), device=device)
    membership[owner, torch.arange(len(owner), device=device)] = 1.0
    is_first = torch.ones(len(owner), device=device)
    is_first[1:] = (owner[1:] != owner[:-1]).float()
    last = batch.attention_mask.sum(1) - 1
    return Place(counted, torch.tensor(documents, device=device), membership, is_first, last)


def _sums_device(device: torch.device) -> torch.device:
    return torch.device("cpu") if device.type == "mps" else device  # mps has no fp64


class _Sums:
    """Per-document fp64 sums `[documents, S]` under several names, one column per state."""

    def __init__(self, names: tuple[str, ...], documents: int) -> None:
        self.columns: dict[str, list[Tensor]] = {name: [] for name in names}
        self.documents = documents

    def add(self, name: str, state: int, values: Tensor, place: Place) -> None:
        """Add per-token `values` `[n]` to their documents."""
        columns = self.columns[name]
        if state == len(columns):
            device = _sums_device(values.device)
            columns.append(torch.zeros(self.documents, dtype=torch.float64, device=device))
        column = columns[state]
        per_document = place.membership.to(values.device).double() @ values.double()
        column[place.documents.to(column.device)] += per_document.to(column.device)

    def totals(self) -> dict[str, np.ndarray]:
        """Everything summed over processes, `[documents, S]` each."""
        return {
            name: sum_over_processes(torch.stack([c.cpu() for c in columns], 1)).numpy()
            for name, columns in self.columns.items()
        }


class ModelSums:
    """Everything that `ModelStatistics` holds, as it adds up. S: number of states."""

    def __init__(self, name: str, documents: int) -> None:
        self.name, self.documents = name, documents
        self.norms = _Sums(("norm_l1", "norm_l2"), documents)
        self.pooled: list[Tensor] = []
        self.last: list[Tensor] = []
        self.shift: list[Tensor] = []
        self.first_moment: list[Tensor] = []
        self.second_moment: list[Tensor] = []
        self.first_position: list[Tensor] = []
        self.count = 0

    def _start(self, h: Tensor) -> None:
        """Allocate the sums of one state, on the device where it is made."""
        device, width = _sums_device(h.device), h.shape[1]
        self.pooled.append(torch.zeros(self.documents, width))
        self.last.append(torch.zeros(self.documents, width))
        self.shift.append(h.mean(0))
        self.first_moment.append(torch.zeros(width, dtype=torch.float64, device=device))
        self.second_moment.append(torch.zeros(width, width, dtype=torch.float64, device=device))
        self.first_position.append(torch.zeros((), dtype=torch.float64, device=device))

    def add(self, state: int, hidden: Tensor, h: Tensor, place: Place) -> Tensor:
        """Add one state of one batch: `hidden` `[B, positions, d]`, `h` its counted tokens `[n, d]`
        in fp32. Returns ‖h‖₂ per token."""
        if state == len(self.shift):
            self._start(h)
        if state == 0:
            self.count += len(h)
        l2 = torch.linalg.vector_norm(h, ord=2, dim=1)
        self.norms.add("norm_l1", state, torch.linalg.vector_norm(h, ord=1, dim=1), place)
        self.norms.add("norm_l2", state, l2, place)
        sums = self.first_position[state]
        sums += (l2 @ place.is_first.to(l2.device)).to(sums.device, torch.float64)

        documents = place.documents.cpu()
        membership = place.membership.to(h.device)
        self.pooled[state][documents] = (membership @ h / membership.sum(1, keepdim=True)).cpu()
        rows = torch.arange(len(documents), device=hidden.device)
        self.last[state][documents] = hidden[rows, place.last.to(hidden.device)].float().cpu()

        centred = h - self.shift[state]
        moment = self.first_moment[state]
        moment += centred.sum(0).to(moment.device, torch.float64)
        self.second_moment[state] += (centred.T @ centred).to(moment.device)
        return l2

    def check(self) -> None:
        """Raise BadInput where a state was not finite, naming model and state."""
        totals = torch.stack([m.diagonal().sum().cpu() for m in self.second_moment])
        for state in (~totals.isfinite()).nonzero().flatten().tolist():
            raise BadInput(
                f"{self.name}: NaN or Inf in hidden state {state} (0 is the embedding output); "
                "try --dtype fp32, or check the weights"
            )

    def _moments(self, state: int) -> tuple[Tensor, Tensor]:
        """Mean `[d]` and scatter `[d, d]` of one state over all processes, by Chan's update.

        The state's own sums are let go: for a wide model all of them twice are gigabytes.
        """
        shift, first = self.shift[state].cpu().double(), self.first_moment[state].cpu()
        own_mean = shift + first / self.count
        scatter = self.second_moment[state].cpu() - torch.outer(first, first) / self.count
        self.second_moment[state] = torch.empty(0)
        count = sum_over_processes(torch.tensor(float(self.count), dtype=torch.float64))
        mean = sum_over_processes(own_mean * self.count) / count
        offset = own_mean - mean
        return mean, sum_over_processes(scatter + self.count * torch.outer(offset, offset))

    def statistics(self, documents: np.ndarray, tokens: np.ndarray) -> ModelStatistics:
        """The finished statistics, equal on every process. Ends the sums: nothing can be added."""
        norms = self.norms.totals()
        states, width = len(self.shift), len(self.shift[0])
        mean, scatter = np.empty((states, width)), np.empty((states, width, width))
        for state in range(states):
            for whole, part in zip((mean, scatter), self._moments(state), strict=True):
                whole[state] = part.numpy()
        first = sum_over_processes(torch.stack([f.cpu() for f in self.first_position])).numpy()
        others = tokens.sum() - len(tokens)
        rest = norms["norm_l2"].sum(0) - first
        # Where every document has a single token there is nothing to compare the first one with.
        ratio = (first / len(tokens)) / (rest / others) if others else np.full(len(first), np.nan)
        return ModelStatistics(
            documents=documents,
            tokens=tokens,
            pooled=sum_over_processes(torch.stack(self.pooled, 1)).numpy(),
            last=sum_over_processes(torch.stack(self.last, 1)).numpy(),
            mean=mean,
            scatter=scatter,
            first_position_ratio=ratio,
            **norms,
        )


class DifferenceSums:
    """Everything that `DifferenceStatistics` holds, as it adds up."""

    def __init__(self, documents: int) -> None:
        self.sums = _Sums(("dh_l1", "dh_l2", "dh_rel", "cosine"), documents)

    def add(self, state: int, h_a: Tensor, h_b: Tensor, place: Place) -> None:
        """Add one state of one batch: counted tokens of both models `[n, d]` in fp32."""
        h_a = h_a.to(h_b.device)
        change = h_b - h_a
        size = torch.linalg.vector_norm(change, ord=2, dim=1)
        norm_a = torch.linalg.vector_norm(h_a, ord=2, dim=1)
        norm_b = torch.linalg.vector_norm(h_b, ord=2, dim=1)
        # A zero state has no direction: the quotient is not finite, and `statistics` says so.
        cosine = torch.linalg.vecdot(h_a, h_b) / (norm_a * norm_b)
        self.sums.add("dh_l1", state, torch.linalg.vector_norm(change, ord=1, dim=1), place)
        self.sums.add("dh_l2", state, size, place)
        self.sums.add("dh_rel", state, size / norm_a, place)
        self.sums.add("cosine", state, cosine, place)

    def statistics(self, documents: np.ndarray, tokens: np.ndarray) -> DifferenceStatistics:
        """The finished statistics, equal on every process."""
        totals = self.sums.totals()
        for name, values in totals.items():
            if not np.isfinite(values).all():
                state = int(np.argwhere(~np.isfinite(values))[0, 1])
                raise BadInput(f"{name} is not finite at hidden state {state}: a state is zero")
        return DifferenceStatistics(documents=documents, tokens=tokens, **totals)

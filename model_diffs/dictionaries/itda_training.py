"""Training of ITDA dictionaries: one pass in which badly reconstructed activations become atoms.

Every batch is encoded with the dictionary as it stands; tokens whose error is above the threshold
become atoms, in reading order, unless one that just entered covers them already. One pass over the
model serves a dictionary per layer. Nothing is random.
"""

import time
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from model_diffs.activations.passes import Reader
from model_diffs.core.errors import BadInput
from model_diffs.core.progress import progress
from model_diffs.dictionaries import itda_reading, pursuit
from model_diffs.dictionaries.itda_reading import PaddedBatch, Reading
from model_diffs.dictionaries.options import Training
from model_diffs.stats.intervals import ratio_interval

# Cosines above this are the same direction, to the rounding of fp32.
SAME = 1 - 1e-6
# Tokens read last, on which the finished dictionary is judged.
JUDGED = 8192
_BLOCK = 1024  # candidates that are compared with one another at a time


class Step(NamedTuple):
    """A row of training.csv: the dictionary after a batch."""

    step: int
    tokens: int
    """Seen so far."""
    atoms: int
    fvu: float
    """Mean over the batch's tokens, before they could become atoms."""


class Judged(NamedTuple):
    """How good a finished dictionary is."""

    fvu: float
    """Mean over the tokens read last, each encoded before it could become an atom."""
    fvu_low: float
    fvu_high: float
    tokens: int
    dead_share: float | None
    """Share of atoms that none of the tokens read last uses, themselves aside; None where all of
    those are atoms."""
    dead_tokens: int
    """How many tokens that was asked of."""


class Trained(NamedTuple):
    """A dictionary and how it came to be."""

    layer: int
    atoms: Tensor
    """`[n, d]` fp32, on the CPU."""
    atom_indices: Tensor
    """`[n, 2]` int64: document, as row of the texts, and position."""
    steps: list[Step]
    judged: Judged
    tokens_per_second: float


class _Seen(NamedTuple):
    """A batch's tokens, kept until they are too long ago."""

    x: Tensor
    where: Tensor
    fvu: Tensor


class LayerTrainer:
    """One layer's dictionary as it grows."""

    def __init__(self, layer: int, width: int, settings: Training, device: torch.device) -> None:
        self.layer, self.settings, self.count = layer, settings, 0
        room = settings.max_atoms
        self._atoms = torch.empty(room, width, device=device)
        keeps_gram = room**2 * 4 <= pursuit.GRAM_BYTES
        self._gram = torch.empty(room, room, device=device) if keeps_gram else None
        self.indices = torch.empty(0, 2, dtype=torch.int64)
        self.steps: list[Step] = []
        self.recent: deque[_Seen] = deque()
        self.tokens = self.tokens_since_full = 0

    @property
    def full(self) -> bool:
        """Whether no atom can be added."""
        return self.count == self.settings.max_atoms

    @property
    def finished(self) -> bool:
        """Full, and judged on enough tokens that came later."""
        return self.full and self.tokens_since_full >= JUDGED

    @property
    def atoms(self) -> Tensor:
        """`[count, d]`, a view."""
        return self._atoms[: self.count]

    @property
    def gram(self) -> Tensor | None:
        """`[count, count]`, a view."""
        return None if self._gram is None else self._gram[: self.count, : self.count]

    def update(self, x: Tensor, where: Tensor) -> None:
        """Encode tokens `x` `[n, d]` fp32, found at `where` `[n, 2]`; add those coded badly."""
        self.tokens += len(x)
        self.tokens_since_full += len(x) if self.full else 0
        codes = pursuit.matching_pursuit(x, self.atoms, self.settings.k, self.gram)
        norms = torch.linalg.vector_norm(x, dim=1)
        candidates = (self._error(x, codes) > self._threshold()) & (norms > 0)
        candidates &= codes.values[:, 0].abs() < SAME * norms
        if not self.full and bool(candidates.any()):
            rows = candidates.nonzero()[:, 0]
            chosen = rows[self._different(normalize(x[rows], dim=1))]
            self._add(normalize(x[chosen], dim=1), where[chosen.cpu()])
        self._remember(x, where, codes.fvu)
        fvu = float(codes.fvu.double().mean())
        self.steps.append(Step(len(self.steps) + 1, self.tokens, self.count, fvu))

    def _threshold(self) -> float:
        loss = self.settings.loss_threshold
        return self.settings.fvu_threshold if loss is None else loss

    def _error(self, x: Tensor, codes: pursuit.Codes) -> Tensor:
        if self.settings.loss_threshold is None:
            return codes.fvu
        if not self.count:
            return torch.full((len(x),), torch.inf, device=x.device)
        x_hat = pursuit.decode(codes, self.atoms)
        return (normalize(x, dim=1) - normalize(x_hat, dim=1)).square().mean(1)

    def _covering_cosine(self, width: int) -> float:
        """|cosine| from which one atom alone meets the threshold for another token."""
        loss = self.settings.loss_threshold
        if loss is None:
            return min(SAME, max(0.0, 1 - self.settings.fvu_threshold) ** 0.5)
        return min(SAME, 1 - loss * width / 2)

    def _different(self, units: Tensor) -> Tensor:
        """Positions of unit rows that no earlier chosen one covers; greedy, in order."""
        enough = self._covering_cosine(units.shape[1])
        room = self.settings.max_atoms - self.count
        chosen = torch.empty(0, dtype=torch.int64, device=units.device)
        for start in range(0, len(units), _BLOCK):
            block = units[start : start + _BLOCK]
            gone = np.zeros(len(block), dtype=bool)
            if len(chosen):
                gone = ((block @ units[chosen].T).abs() >= enough).any(1).cpu().numpy()
            covers = ((block @ block.T).abs() >= enough).cpu().numpy()
            kept = []
            for row in range(len(block)):
                if not gone[row]:
                    kept.append(start + row)
                    gone |= covers[row]
            chosen = torch.cat([chosen, torch.tensor(kept, dtype=torch.int64).to(chosen.device)])
            if len(chosen) >= room:
                break
        return chosen[:room]

    def _add(self, new: Tensor, where: Tensor) -> None:
        old, self.count = self.count, self.count + len(new)
        self._atoms[old : self.count] = new
        self.indices = torch.cat([self.indices, where])
        if self._gram is not None:
            rows = new @ self.atoms.T
            self._gram[old : self.count, : self.count] = rows
            self._gram[: self.count, old : self.count] = rows.T

    def _remember(self, x: Tensor, where: Tensor, fvu: Tensor) -> None:
        self.recent.append(_Seen(x, where, fvu.cpu()))
        while sum(len(seen.x) for seen in self.recent) - len(self.recent[0].x) >= JUDGED:
            self.recent.popleft()

    def judge(self) -> Judged:
        """Measure the finished dictionary on the tokens read last."""
        where = torch.cat([seen.where for seen in self.recent])
        fvu = torch.cat([seen.fvu for seen in self.recent]).double().numpy()
        # While the dictionary was young it fitted little; the last tenth speaks for the finished.
        last = slice(-max(1, min(len(fvu), max(self.tokens // 10, self.tokens_since_full))), None)
        documents = np.unique(where[last, 0].numpy(), return_inverse=True)[1]
        sums = np.bincount(documents, fvu[last])
        interval = ratio_interval(sums, np.bincount(documents), self.settings.seed)
        atoms_at = set(map(tuple, self.indices.tolist()))
        others = [tuple(place) not in atoms_at for place in where.tolist()]
        x = torch.cat([seen.x for seen in self.recent])[torch.tensor(others).to(self._atoms.device)]
        codes = pursuit.matching_pursuit(x, self.atoms, self.settings.k, self.gram)
        used = codes.indices[codes.values != 0].unique()
        return Judged(
            float(interval.mean),
            float(interval.low),
            float(interval.high),
            len(documents),
            1 - len(used) / self.count if len(x) else None,
            len(x),
        )


@torch.inference_mode()
def train(
    reader: Reader, reading: Reading, pad_id: int, layers: Sequence[int], settings: Training
) -> list[Trained]:
    """A dictionary for each of `layers`, from one pass over the model, in the texts' order.

    The pass ends early once all dictionaries are full and judged. Raises BadInput for a layer that
    the model has not, states that are not finite, and memory that does not suffice.
    """
    anatomy = reader.anatomy
    itda_reading.check_layers(anatomy, layers, reader.name)
    device = anatomy.embedding.weight.device
    rows = range(len(reading.tokens.ids))
    order = [rows[i : i + settings.batch_size] for i in range(0, len(rows), settings.batch_size)]
    order = order[: settings.max_steps or None]
    trainers: dict[int, LayerTrainer] = {}
    started = time.perf_counter()
    with itda_reading.out_of_memory(settings.batch_size):
        batches = itda_reading.padded_batches(reading.tokens, order, pad_id, device)
        for at in progress(batches, "dictionary", total=len(order), unit="batch"):
            _learn(reader, at, reading, layers, settings, trainers)
            if all(trainer.finished for trainer in trainers.values()):
                break
        seconds = time.perf_counter() - started
        return [_trained(trainers[layer], seconds) for layer in layers]


def _learn(
    reader: Reader,
    at: PaddedBatch,
    reading: Reading,
    layers: Sequence[int],
    settings: Training,
    trainers: dict[int, LayerTrainer],
) -> None:
    texts = torch.from_numpy(reading.tokens.documents[at.rows])[at.documents]
    where = torch.stack([texts, at.positions], 1)

    def receive(layer: int, hidden: Tensor) -> None:
        x = hidden[at.counted.to(hidden.device)].float()
        if not bool(torch.isfinite(x).all()):
            raise BadInput(
                f"{reader.name}: the output of block {layer} holds NaN or Inf: try --dtype fp32"
            )
        if layer not in trainers:
            trainers[layer] = LayerTrainer(layer, x.shape[1], settings, x.device)
        if not trainers[layer].finished:
            trainers[layer].update(x, where)

    itda_reading.stream_block_outputs(reader.anatomy, at.batch, layers, receive)


def _trained(trainer: LayerTrainer, seconds: float) -> Trained:
    if not trainer.count:
        raise BadInput(
            f"layer {trainer.layer}: no activation has an error above the threshold, so there is "
            "no atom; lower --fvu-threshold (or --loss-threshold)"
        )
    return Trained(
        trainer.layer,
        trainer.atoms.cpu().clone(),
        trainer.indices,
        trainer.steps,
        trainer.judge(),
        trainer.tokens / seconds,
    )

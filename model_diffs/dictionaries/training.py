"""Training of ITDA dictionaries: one pass in which badly reconstructed activations become atoms.

Each batch is encoded with the dictionary as it stands; tokens whose error is above the threshold
become atoms, in reading order, unless one that was just added covers them. One pass over the model
serves a dictionary per layer. Nothing is random.
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
from model_diffs.activations.tokens import TokenBatch, padded_batches
from model_diffs.core.errors import BadInput
from model_diffs.core.progress import progress
from model_diffs.dictionaries import pursuit, reading
from model_diffs.dictionaries.options import Training
from model_diffs.dictionaries.reading import Reading
from model_diffs.stats.intervals import Interval, ratio_interval

# Cosines above this are the same direction, to the rounding of fp32.
SAME = 1 - 1e-6
# The finished dictionary is judged on this many tokens, those read last.
JUDGED = 8192
_BLOCK = 1024  # candidates that are compared with one another at a time


class TrainingRow(NamedTuple):
    """A row of training.csv: the dictionary after a batch."""

    step: int
    tokens: int
    """Read so far."""
    atoms: int
    fvu: float
    """Mean over the batch's tokens, before they could become atoms."""


class Judged(NamedTuple):
    """How good a finished dictionary is."""

    fvu: Interval
    """Mean over the tokens read last, each encoded before it could become an atom."""
    tokens: int
    dead_share: float | None
    """Share of atoms that none of `dead_tokens` uses; None where there is no such token."""
    dead_tokens: int
    """Tokens read last that are no atoms themselves."""


class Trained(NamedTuple):
    """A dictionary and how it was made."""

    layer: int
    atoms: Tensor
    """`[n, d]` fp32, on the CPU."""
    atom_indices: Tensor
    """`[n, 2]` int64: document, as row of the texts, and position."""
    rows: list[TrainingRow]
    judged: Judged
    tokens_per_second: float


class LayerTrainer:
    """The growing dictionary of one layer."""

    def __init__(self, width: int, settings: Training, device: torch.device) -> None:
        self.settings, self.count = settings, 0
        room = settings.max_atoms
        self._atoms = torch.empty(room, width, device=device)
        keeps_gram = room**2 * 4 <= pursuit.GRAM_BYTES
        self._gram = torch.empty(room, room, device=device) if keeps_gram else None
        self.indices = torch.empty(0, 2, dtype=torch.int64)
        self.rows: list[TrainingRow] = []
        # Tokens, where they were found and their FVU, for each of the last batches.
        self.recent: deque[tuple[Tensor, Tensor, Tensor]] = deque()
        self.tokens = self.tokens_since_full = 0
        loss = settings.loss_threshold
        self.threshold = settings.fvu_threshold if loss is None else loss
        # |cosine| from which one atom alone meets the threshold for another token.
        covering = max(0.0, 1 - self.threshold) ** 0.5 if loss is None else 1 - loss * width / 2
        self.covering = min(SAME, covering)

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
        candidates = (self._errors(x, codes) > self.threshold) & (norms > 0)
        candidates &= codes.values[:, 0].abs() < SAME * norms
        if not self.full and bool(candidates.any()):
            places = candidates.nonzero()[:, 0]
            chosen = places[self._different(normalize(x[places], dim=1))]
            self._add(normalize(x[chosen], dim=1), where[chosen.cpu()])
        self.recent.append((x, where, codes.fvu.cpu()))
        while sum(len(seen) for seen, *_ in self.recent) - len(self.recent[0][0]) >= JUDGED:
            self.recent.popleft()
        fvu = float(codes.fvu.double().mean())
        self.rows.append(TrainingRow(len(self.rows) + 1, self.tokens, self.count, fvu))

    def _errors(self, x: Tensor, codes: pursuit.Codes) -> Tensor:
        """`[n]`, by the chosen criterion."""
        if self.settings.loss_threshold is None:
            return codes.fvu
        if not self.count:
            return torch.full((len(x),), torch.inf, device=x.device)
        x_hat = pursuit.decode(codes, self.atoms)
        return (normalize(x, dim=1) - normalize(x_hat, dim=1)).square().mean(1)

    def _different(self, units: Tensor) -> Tensor:
        """Positions of unit rows that no earlier chosen one covers; greedy, in order."""
        room = self.settings.max_atoms - self.count
        chosen = torch.empty(0, dtype=torch.int64, device=units.device)
        for start in range(0, len(units), _BLOCK):
            block = units[start : start + _BLOCK]
            covered = ((block @ units[chosen].T).abs() >= self.covering).any(1).cpu().numpy()
            covers = ((block @ block.T).abs() >= self.covering).cpu().numpy()
            kept = []
            for row in range(len(block)):
                if not covered[row]:
                    kept.append(start + row)
                    covered |= covers[row]
            chosen = torch.cat([chosen, torch.tensor(kept, dtype=torch.int64).to(chosen.device)])
            if len(chosen) >= room:
                break
        return chosen[:room]

    def _add(self, new: Tensor, where: Tensor) -> None:
        old, self.count = self.count, self.count + len(new)
        self._atoms[old : self.count] = new
        self.indices = torch.cat([self.indices, where])
        if self._gram is not None:
            products = new @ self.atoms.T
            self._gram[old : self.count, : self.count] = products
            self._gram[: self.count, old : self.count] = products.T

    def judge(self) -> Judged:
        """Measure the finished dictionary on the tokens read last."""
        x, where, fvu = (torch.cat(part) for part in zip(*self.recent, strict=True))
        # A young dictionary fits little, so only the last tenth is evidence for the finished one.
        last = slice(-max(1, min(len(fvu), max(self.tokens // 10, self.tokens_since_full))), None)
        documents = np.unique(where[last, 0].numpy(), return_inverse=True)[1]
        sums = np.bincount(documents, fvu[last].double().numpy())
        interval = ratio_interval(sums, np.bincount(documents), self.settings.seed)
        atoms_at = set(map(tuple, self.indices.tolist()))
        others = torch.tensor([tuple(place) not in atoms_at for place in where.tolist()])
        x = x[others.to(x.device)]
        codes = pursuit.matching_pursuit(x, self.atoms, self.settings.k, self.gram)
        used = codes.indices[codes.values != 0].unique()
        dead_share = 1 - len(used) / self.count if len(x) else None
        return Judged(interval, len(documents), dead_share, len(x))

    def trained(self, layer: int, seconds: float) -> Trained:
        """The result. Raises BadInput where no atom was found."""
        if not self.count:
            raise BadInput(
                f"layer {layer}: no activation has an error above the threshold, so there is "
                "no atom; lower --fvu-threshold (or --loss-threshold)"
            )
        return Trained(
            layer=layer,
            atoms=self.atoms.cpu().clone(),
            atom_indices=self.indices,
            rows=self.rows,
            judged=self.judge(),
            tokens_per_second=self.tokens / seconds,
        )


@torch.inference_mode()
def train(
    reader: Reader, texts: Reading, pad_id: int, layers: Sequence[int], settings: Training
) -> list[Trained]:
    """A dictionary for each of `layers`, from one pass over the model, in the texts' order.

    The pass ends early once all dictionaries are full and judged. Raises BadInput for a layer that
    the model does not have, states that are not finite, and too little memory.
    """
    reading.check_layers(reader.anatomy, layers, reader.name)
    device = reader.anatomy.embedding.weight.device
    documents = list(range(len(texts.tokens.ids)))
    size = settings.batch_size
    order = [documents[start : start + size] for start in range(0, len(documents), size)]
    order = order[: settings.max_steps or None]
    trainers: dict[int, LayerTrainer] = {}
    started = time.perf_counter()
    with reading.out_of_memory(size):
        bar = progress(order, "dictionary", unit="batch")
        for at in padded_batches(texts.tokens, bar, pad_id, device):
            _learn(reader, at, texts.tokens.documents, layers, settings, trainers)
            if all(trainer.finished for trainer in trainers.values()):
                break
        seconds = time.perf_counter() - started
        return [trainers[layer].trained(layer, seconds) for layer in layers]


def _learn(
    reader: Reader,
    at: TokenBatch,
    documents: np.ndarray,
    layers: Sequence[int],
    settings: Training,
    trainers: dict[int, LayerTrainer],
) -> None:
    """Show a batch to the trainer of each layer. `documents`: row of the texts, per document."""
    rows, positions = at.places.cpu().unbind(1)
    where = torch.stack([torch.from_numpy(documents[at.rows])[rows], positions], 1)

    def receive(layer: int, hidden: Tensor) -> None:
        x = hidden[at.counted.to(hidden.device)].float()
        if not bool(torch.isfinite(x).all()):
            raise BadInput(
                f"{reader.name}: the output of block {layer} holds NaN or Inf: try --dtype fp32"
            )
        if layer not in trainers:
            trainers[layer] = LayerTrainer(x.shape[1], settings, x.device)
        if not trainers[layer].finished:
            trainers[layer].update(x, where)

    reading.stream_block_outputs(reader.anatomy, at.batch, layers, receive)

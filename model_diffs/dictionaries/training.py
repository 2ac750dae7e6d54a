"""Training of ITDA dictionaries: one pass in which badly reconstructed activations become atoms.

Each batch is encoded with the dictionary as it stands; tokens whose error is above the threshold
become atoms, in reading order, unless one that was just added covers them. One pass over the model
serves a dictionary per layer. Nothing is random.
"""

import time
from collections import deque
from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from model_diffs.activations.passes import Reader
from model_diffs.activations.tokens import padded_batches
from model_diffs.core.errors import BadInput
from model_diffs.core.progress import progress
from model_diffs.dictionaries import pursuit, reading
from model_diffs.dictionaries.options import Training
from model_diffs.dictionaries.reading import Reading
from model_diffs.models.devices import wide
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
    fvu_tokens: int
    dead_share: float | None
    """Share of atoms that none of `dead_tokens` uses; None where there is no such token."""
    dead_tokens: int
    """Tokens read last that are no atoms themselves."""


class Trained:
    """The growing dictionary of one layer, and how it grew: a row of `rows` per batch."""

    def __init__(self, layer: int, width: int, settings: Training, device: torch.device) -> None:
        self.layer, self.settings, self.count = layer, settings, 0
        room = settings.max_atoms
        self._atoms = torch.empty(room, width, device=device)
        keeps_gram = room**2 * 4 <= pursuit.GRAM_BYTES
        self._gram = torch.empty(room, room, device=device) if keeps_gram else None
        # `[count, 2]`: document, as row of the texts, and position.
        self.atom_indices = torch.empty(0, 2, dtype=torch.int64)
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
    def finished(self) -> bool:
        """Full, and judged on enough tokens that came later."""
        return self.count == self.settings.max_atoms and self.tokens_since_full >= JUDGED

    @property
    def atoms(self) -> Tensor:
        """`[count, d]` fp32, a view."""
        return self._atoms[: self.count]

    def encode(self, x: Tensor) -> pursuit.Codes:
        """Codes of `x` `[n, d]` fp32 with the atoms that there are."""
        gram = None if self._gram is None else self._gram[: self.count, : self.count]
        return pursuit.matching_pursuit(x, self.atoms, self.settings.k, gram)

    def update(self, x: Tensor, where: Tensor) -> None:
        """Encode tokens `x` `[n, d]` fp32, found at `where` `[n, 2]`; add those coded badly."""
        full = self.count == self.settings.max_atoms
        self.tokens += len(x)
        self.tokens_since_full += len(x) if full else 0
        codes = self.encode(x)
        norms = torch.linalg.vector_norm(x, dim=1)
        candidates = (self._errors(x, codes) > self.threshold) & (norms > 0)
        candidates &= codes.values[:, 0].abs() < SAME * norms
        if not full and bool(candidates.any()):
            places = candidates.nonzero()[:, 0]
            chosen = places[self._different(normalize(x[places], dim=1))]
            self._add(normalize(x[chosen], dim=1), where[chosen.cpu()])
        self.recent.append((x, where, codes.fvu.cpu()))
        while sum(len(seen) for seen, *_ in self.recent) - len(self.recent[0][0]) >= JUDGED:
            self.recent.popleft()
        fvu = float(wide(codes.fvu).mean())
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
        chosen: list[int] = []
        for start in range(0, len(units), _BLOCK):
            block = units[start : start + _BLOCK]
            covered = ((block @ units[chosen].T).abs() >= self.covering).any(1).cpu().numpy()
            covers = ((block @ block.T).abs() >= self.covering).cpu().numpy()
            for row in range(len(block)):
                if not covered[row]:
                    chosen.append(start + row)
                    covered |= covers[row]
            if len(chosen) >= room:
                break
        return torch.tensor(chosen[:room], device=units.device)

    def _add(self, new: Tensor, where: Tensor) -> None:
        old, self.count = self.count, self.count + len(new)
        self._atoms[old : self.count] = new
        self.atom_indices = torch.cat([self.atom_indices, where])
        if self._gram is not None:
            products = new @ self.atoms.T
            self._gram[old : self.count, : self.count] = products
            self._gram[: self.count, old : self.count] = products.T

    @cached_property
    def judged(self) -> Judged:
        """The finished dictionary, measured on the tokens read last."""
        x, where, fvu = (torch.cat(part) for part in zip(*self.recent, strict=True))
        # A young dictionary fits little, so only the last tenth is evidence for the finished one.
        last = slice(-max(1, min(len(fvu), max(self.tokens // 10, self.tokens_since_full))), None)
        documents = np.unique(where[last, 0].numpy(), return_inverse=True)[1]
        sums = np.bincount(documents, fvu[last].double().numpy())
        interval = ratio_interval(sums, np.bincount(documents), self.settings.seed)
        atoms_at = set(map(tuple, self.atom_indices.tolist()))
        others = torch.tensor([tuple(place) not in atoms_at for place in where.tolist()])
        x = x[others.to(x.device)]
        codes = self.encode(x)
        used = codes.indices[codes.values != 0].unique()
        dead_share = 1 - len(used) / self.count if len(x) else None
        return Judged(interval, len(documents), dead_share, len(x))


@torch.inference_mode()
def train(
    reader: Reader, texts: Reading, pad_id: int, layers: Sequence[int], settings: Training
) -> tuple[list[Trained], float]:
    """A dictionary for each of `layers`, from one pass over the model in the texts' order, and the
    seconds that it took.

    The pass ends early once all dictionaries are full and judged. Raises BadInput for a layer that
    the model does not have, one without an atom, states that are not finite, and too little memory.
    """
    documents, size = range(len(texts.tokens.ids)), settings.batch_size
    order = [documents[start : start + size] for start in range(0, len(documents), size)]
    bar = progress(order[: settings.max_steps or None], "dictionary", unit="batch")
    trained: dict[int, Trained] = {}
    started = time.perf_counter()
    with reading.out_of_memory(size):
        device = reader.anatomy.embedding.weight.device
        for at in padded_batches(texts.tokens, bar, pad_id, device):
            rows, positions = at.places.cpu().unbind(1)
            where = torch.stack(
                [torch.from_numpy(texts.tokens.documents[at.rows])[rows], positions], 1
            )
            for layer, x in reading.activations(reader, at, layers).items():
                if layer not in trained:
                    trained[layer] = Trained(layer, x.shape[1], settings, x.device)
                if not trained[layer].finished:
                    trained[layer].update(x, where)
            if all(one.finished for one in trained.values()):
                break
        seconds = time.perf_counter() - started
        for layer, one in trained.items():
            if not one.count:
                raise BadInput(
                    f"layer {layer}: no activation has an error above the threshold, so there is "
                    "no atom; lower --fvu-threshold (or --loss-threshold)"
                )
            assert one.judged  # computed here, where running out of memory is reported
        return [trained[layer] for layer in layers], seconds

"""Models on their way through the evaluation texts, encoded by one dictionary.

The base is encoded once for all changed models. Where all fit into memory they read each batch side
by side; where not, the base's sums per document wait on the disk, and the changed models are read
one after the other.
"""

import gc
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from model_diffs.activations.passes import Reader
from model_diffs.core import folders, naming
from model_diffs.core.errors import BadInput
from model_diffs.core.progress import progress
from model_diffs.data import texts
from model_diffs.dictionaries import itda_reading
from model_diffs.dictionaries.diffing_sums import BatchCodes, ModelTotals, PairedSums, sum_codes
from model_diffs.dictionaries.itda import ITDA
from model_diffs.dictionaries.itda_reading import PaddedBatch, Reading
from model_diffs.dictionaries.pursuit import Codes


class Plan(NamedTuple):
    """What is read, and how."""

    itda: ITDA
    reading: Reading
    pad_id: int
    batch_size: int
    max_steps: int
    """Batches of documents, from the first; 0 = all."""
    contexts: int
    """Documents kept per latent and model."""
    keep_activations: bool
    device: torch.device


class SparseActivations(NamedTuple):
    """Codes of n tokens, k slots each, in the order of documents and positions."""

    documents: Tensor
    """`[n]` row of the text in the data sets."""
    positions: Tensor
    """`[n]` position in the document."""
    indices: Tensor
    """`[n, k]` latents."""
    values: Tensor
    """`[n, k]` coefficients; 0 where a slot is not used."""


@dataclass
class Encoded:
    """What one model leaves."""

    name: str
    totals: ModelTotals
    paired: PairedSums | None
    """Against the base; None for the base itself."""
    kept: list[SparseActivations] = field(default_factory=list)

    def activations(self) -> SparseActivations | None:
        """All codes, in reading order; None where they were not kept."""
        if not self.kept:
            return None
        parts = SparseActivations(*(torch.cat(part) for part in zip(*self.kept, strict=True)))
        longest = int(parts.positions.max()) + 1
        order = (parts.documents * longest + parts.positions).argsort()
        return SparseActivations(*(part[order] for part in parts))


class _Store(Protocol):
    def write(self, number: int, codes: BatchCodes) -> None: ...
    def read(self, number: int) -> BatchCodes: ...


class _InMemory:
    """The base's sums of the batch at hand."""

    def write(self, number: int, codes: BatchCodes) -> None:
        self.number, self.codes = number, codes

    def read(self, number: int) -> BatchCodes:
        return self.codes


class _OnDisk:
    """The base's sums of all batches, without their zeros."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, number: int, codes: BatchCodes) -> None:
        place = codes.fires.flatten().nonzero()[:, 0]
        named = {
            "place": place,
            "sums": codes.sums.flatten()[place],
            "fires": codes.fires.flatten()[place],
            "counts": codes.counts,
            "shape": torch.tensor(codes.sums.shape),
        }
        save_file(named, self.folder / f"{number}.safetensors")

    def read(self, number: int) -> BatchCodes:
        found = load_file(self.folder / f"{number}.safetensors")
        batch, latents = found["shape"].tolist()
        dense = torch.zeros(2, batch * latents, dtype=torch.float64)
        dense[0, found["place"]] = found["sums"]
        dense[1, found["place"]] = found["fires"]
        sums, fires = (part.view(batch, latents) for part in dense)
        nothing = torch.empty(0)  # peaks and fit are the base's own and were added up already
        return BatchCodes(sums, fires, nothing, nothing, nothing, found["counts"])


@contextmanager
def _on_disk(scratch: Path) -> Iterator[_OnDisk]:
    # A name that folders.remove_leftovers knows, so that a killed run's files are cleared later.
    final = scratch / "itda_codes"
    scratch.mkdir(parents=True, exist_ok=True)
    folders.remove_leftovers(final)
    folder = scratch / f".{final.name}.{os.getpid()}{folders.PARTIAL}"
    folder.mkdir()
    try:
        yield _OnDisk(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@torch.inference_mode()
def encode_models(
    load: Callable[[str], Reader],
    base: str,
    changed: Sequence[str],
    plan: Plan,
    scratch: Path | None,
) -> list[Encoded]:
    """The base and every changed model over all texts, the base first.

    With a `scratch` folder one model is in memory at a time, without one all are. Raises BadInput
    for models that the dictionary is not for, and where memory does not suffice.
    """
    latents = plan.itda.size
    sources = torch.as_tensor(plan.reading.sources, dtype=torch.long)
    found = [
        Encoded(
            name,
            ModelTotals(latents, sources, plan.contexts),
            PairedSums(latents) if number else None,
        )
        for number, name in enumerate([base, *changed])
    ]
    with itda_reading.out_of_memory(plan.batch_size):
        if scratch is None:
            readers = [_checked(load(one.name), plan.itda) for one in found]
            _read(list(zip(readers, found, strict=True)), plan, _InMemory())
        else:
            with _on_disk(scratch) as store:
                for one in found:
                    reader = _checked(load(one.name), plan.itda)
                    _read([(reader, one)], plan, store)
                    del reader
                    gc.collect()
                    if torch.cuda.is_available():
                        torch.cuda.empty_cache()
    return found


def _checked(reader: Reader, itda: ITDA) -> Reader:
    itda_reading.check_layers(reader.anatomy, [itda.layer], reader.name)
    width = int(reader.model.config.get_text_config().hidden_size)  # type: ignore[union-attr, operator]
    if width != itda.activation_dim:
        raise BadInput(
            f"{reader.name} is {width} wide and the dictionary's atoms {itda.activation_dim}: "
            f"it was trained on another model, {itda.metadata.get('lm_name')}"
        )
    return reader


def _read(todo: list[tuple[Reader, Encoded]], plan: Plan, store: _Store) -> None:
    tokens = plan.reading.tokens
    count = len(tokens.ids)
    count = min(count, plan.max_steps * plan.batch_size) if plan.max_steps else count
    order = texts.length_batches([len(ids) for ids in tokens.ids[:count]], plan.batch_size)
    batches = itda_reading.padded_batches(tokens, order, plan.pad_id, plan.device)
    description = naming.model_label(todo[0][0].name) if len(todo) == 1 else "encoding"
    for number, at in enumerate(progress(batches, description, len(order), "batch")):
        for reader, one in todo:
            codes = _encode(reader, at, plan.itda)
            summed = sum_codes(codes, at.documents, at.positions, len(at.rows), plan.itda.size)
            one.totals.add(summed, at.rows)
            if one.paired is None:
                store.write(number, summed)
            else:
                one.paired.add(store.read(number), summed)
            if plan.keep_activations:
                rows = torch.from_numpy(tokens.documents[at.rows])[at.documents]
                one.kept.append(
                    SparseActivations(rows, at.positions, codes.indices.cpu(), codes.values.cpu())
                )


def _encode(reader: Reader, at: PaddedBatch, itda: ITDA) -> Codes:
    found: list[Codes] = []

    def receive(layer: int, hidden: Tensor) -> None:
        try:
            found.append(itda.encode(hidden[at.counted.to(hidden.device)]))
        except BadInput as error:
            raise BadInput(f"{reader.name}, block {layer}: {error}") from error

    itda_reading.stream_block_outputs(reader.anatomy, at.batch, [itda.layer], receive)
    return found[0]

"""Model diffing: which latents of a dictionary a changed model uses more, or less, than its base.

diffing = ModelDiffing("artifacts/runs/one", "models/miniature-base", layer=2, device="cpu")
found = diffing.run_model_diffing(
    "models/miniature-base", "models/miniature-filtered", "data/miniature/forget.txt", 0
)
found["sorted_indices"][:10], found["sorted_differences"][:10]
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

from model_diffs.activations.passes import Reader
from model_diffs.activations.tokens import padded_batches
from model_diffs.core import folders
from model_diffs.core.errors import BadInput
from model_diffs.core.progress import progress
from model_diffs.data.texts import length_batches
from model_diffs.dictionaries import reading
from model_diffs.dictionaries.itda import ITDA
from model_diffs.dictionaries.options import Diffing
from model_diffs.dictionaries.reading import Reading
from model_diffs.dictionaries.sae_dictionary import PREFIX, Dictionary, SaeDictionary
from model_diffs.dictionaries.sums import BatchCodes, ModelTotals, sum_codes
from model_diffs.dictionaries.tokenizers import check_reads_alike
from model_diffs.models import devices, loading
from model_diffs.models.checkpoints import Checkpoint, check_configs
from model_diffs.stats.intervals import Interval, ratio_interval

# Documents kept per context that is shown: of documents that begin alike only one is shown.
SPARE = 4


class Fit(NamedTuple):
    """How well the dictionary fits both models on some texts: mean FVU over tokens."""

    a: Interval
    b: Interval
    change: Interval
    """Paired: the same resampled documents on both sides."""
    documents: int
    tokens: int

    @property
    def worse(self) -> bool:
        """Whether FVU is significantly higher in the changed model; never for one document."""
        return self.documents > 1 and float(self.change.low) > 0


class Comparison(NamedTuple):
    """The changed model against the base."""

    base: ModelTotals
    changed: ModelTotals
    changes: pd.DataFrame
    """As `ModelTotals.changes` gives them."""
    fits: dict[str, Fit]
    """Of all texts, under `all`, and of each data set under its name where there are several."""
    order: np.ndarray
    """Latents, largest increase first."""


class ModelDiffing:
    """Differences between models in the latents of one dictionary."""

    def __init__(
        self,
        itda_path: str | Path,
        model_name: str,
        layer: int | None,
        device: str = Diffing.device,
        seq_len: int = Diffing.seq_len,
        batch_size: int = Diffing.batch_size,
        *,
        options: Diffing | None = None,
    ) -> None:
        """Open the dictionary and the tokenizer of `model_name`, the base.

        `itda_path` is the folder of an ITDA dictionary, or `sae:` and the name of an SAE. Without
        `layer`, the dictionary's own is used; `options` hold in place of `device`, `seq_len` and
        `batch_size`. Raises BadInput where there is no dictionary, or it is of another layer or
        tokenizer.
        """
        self.options = options or Diffing(device=device, seq_len=seq_len, batch_size=batch_size)
        self.device = devices.pick_device(self.options.device)
        name = str(itda_path)
        if name.startswith(PREFIX):
            sae = (name.removeprefix(PREFIX), model_name, layer, self.options, self.device)
            self.itda: Dictionary = SaeDictionary.open(*sae)
        else:
            self.itda = ITDA.from_pretrained(name, self.device)
        if layer not in (None, self.itda.layer):
            raise BadInput(f"{itda_path} is a dictionary of layer {self.itda.layer}, not {layer}")
        self.model_name = model_name
        self.reads_with = self.options.tokenizer or model_name
        self.tokenizer = loading.load_tokenizer(self.reads_with, self.options.trust_remote_code)
        known = self.itda.metadata.get("tokenizer_sha256")
        if known and known != reading.tokenizer_sha256(self.tokenizer):
            raise BadInput(
                f"{self.reads_with} has another tokenizer than "
                f"{self.itda.metadata.get('lm_name')}, on "
                f"which {itda_path} was trained: train a dictionary for it"
            )

    def read(self, names: Sequence[str]) -> Reading:
        """The evaluation texts as tokens; the same positions are left out as in training."""
        keep_bos = bool(self.itda.metadata.get("keep_bos", False))
        skip_first = int(self.itda.metadata.get("skip_first", 0))
        return reading.read(names, self.tokenizer, self.options, keep_bos, skip_first)

    def load(self, name: str) -> Reader:
        """Load a model."""
        return Reader(name, loading.load_for(self.options, name, self.options.device_map))

    def compare(
        self,
        base: str,
        changed: Sequence[str],
        texts: Reading,
        max_steps: int = 0,
        keep_activations: bool = False,
    ) -> list[Comparison]:
        """Each changed model against the base, which is encoded once.

        Where models do not fit side by side, temporary files go to `options.outroot`; a model whose
        tokenizer is not the base's, and makes no difference, is named on stderr. Raises BadInput
        for models of another architecture or tokenizer than the base and of another width than the
        dictionary, `max_steps` that end before a data set is reached, states that are not
        finite, and too little memory.
        """
        documents, names = max_steps * self.options.batch_size or None, [base, *changed]
        last = texts.sources[:documents][-1]
        if last < texts.sources[-1]:
            raise BadInput(
                f"--max-steps {max_steps} ends before {', '.join(texts.names[last + 1 :])}: use "
                "--max-samples, which takes some of each data set"
            )
        checkpoints = [Checkpoint.open(name) for name in names]
        for checkpoint in checkpoints[1:]:
            check_configs(checkpoints[0], checkpoint, besides=("vocab_size",))
        self._check_tokenizers(names, texts)
        sources, kept = torch.from_numpy(texts.sources), SPARE * self.options.contexts
        totals = [ModelTotals(self.itda.size, sources, kept) for _ in names]
        batches = length_batches(texts.tokens.lengths[:documents], self.options.batch_size)
        left = iter(totals)

        def encode(readers: Sequence[Reader], scratch: Path | None = None) -> None:
            todo = [(reader, next(left)) for reader in readers]
            self._encode(todo, texts, batches, keep_activations, scratch)

        dtype = devices.pick_dtype(self.options.dtype, self.device)
        with reading.out_of_memory(self.options.batch_size):
            together = "no" if self.options.device_map else self.options.side_by_side
            if loading.fit_together(checkpoints, together, self.device, dtype):
                encode([self.load(name) for name in names])
            else:
                with folders.scratch_folder(Path(self.options.outroot) / "itda_codes") as scratch:
                    loading.one_by_one(self.load, names, lambda reader: encode([reader], scratch))
        return [self._comparison(totals[0], one, texts) for one in totals[1:]]

    def _check_tokenizers(self, names: Sequence[str], texts: Reading) -> None:
        largest = max(map(max, texts.tokens.ids))
        for name in dict.fromkeys(names):
            size = Checkpoint.open(name).config.get("vocab_size")
            if size is not None and largest >= size:
                raise BadInput(f"{name} has {size} tokens, and {self.reads_with} gives {largest}")
            if name in (self.model_name, self.reads_with) or self.options.tokenizer:
                continue
            length, trusted = self.options.seq_len, self.options.trust_remote_code
            note = check_reads_alike(self.model_name, self.tokenizer, name, texts, length, trusted)
            if note:
                print(f"warning: {note}", file=sys.stderr)

    @torch.inference_mode()
    def _encode(
        self,
        todo: Sequence[tuple[Reader, ModelTotals]],
        texts: Reading,
        batches: list[list[int]],
        keep_activations: bool,
        scratch: Path | None,
    ) -> None:
        """Run models over all batches, the base first; its sums wait in `scratch` for others."""
        bar = progress(batches, "encoding", unit="batch")
        pad_id, layer, site = self.tokenizer.pad_token_id, self.itda.layer, self.itda.site
        for number, at in enumerate(padded_batches(texts.tokens, bar, pad_id, self.device)):
            file = scratch and scratch / f"{number}.npz"
            base = BatchCodes.load(file) if file and file.exists() else None
            for reader, totals in todo:
                codes = self.itda.encode(reading.activations(reader, at, [layer], site)[layer])
                sums = sum_codes(codes, at.places, len(at.rows), self.itda.size)
                if base is None:
                    base = sums
                    if file:
                        base.save(file)
                totals.add(sums, base, at.rows)
                if keep_activations:
                    totals.keep(codes, at.places, texts.tokens.documents[at.rows])

    def _comparison(self, base: ModelTotals, changed: ModelTotals, texts: Reading) -> Comparison:
        changes, seed = changed.changes(), self.options.seed
        counts, a, b = (x.numpy() for x in (base.counts, base.unexplained, changed.unexplained))
        read = counts > 0  # --max-steps may leave documents unread
        subsets = {"all": read}
        if len(texts.splits) > 1:
            subsets |= {name: read & (texts.sources == i) for i, name in enumerate(texts.names)}
        fits = {}
        for name, rows in subsets.items():
            if rows.any():
                n = counts[rows]
                fvu_a, fvu_b, change = (ratio_interval(x[rows], n, seed) for x in (a, b, b - a))
                fits[name] = Fit(fvu_a, fvu_b, change, len(n), int(n.sum()))
        order = np.argsort(-changes["difference"].to_numpy(), kind="stable")
        return Comparison(base, changed, changes, fits, order)

    def run_model_diffing(
        self,
        initial_model_name: str,
        fine_tuned_model_name: str,
        evaluation_dataset: str | Sequence[str],
        max_steps: int = 0,
        keep_activations: bool = True,
    ) -> Mapping[str, Any]:
        """Compare two models on a data set (or several); `max_steps` batches, 0 = all.

        `activation_differences` `[m]`: mean coefficient of each latent over all tokens, tuned minus
        initial; `sorted_indices`, `sorted_differences`: largest increase first; `activations_M`,
        `activations_MD`: `SparseActivations`, None without `keep_activations`. Also `std_errors`
        over documents, `p_values` and `q_values` (NaN where a latent occurs in too few documents),
        `frequency_differences`, and `fvu`, a `Fit`.
        """
        names = [evaluation_dataset] if isinstance(evaluation_dataset, str) else evaluation_dataset
        tuned, texts = [fine_tuned_model_name], self.read(names)
        (found,) = self.compare(initial_model_name, tuned, texts, max_steps, keep_activations)
        frequencies = found.changed.frequency - found.base.frequency
        columns = {name: torch.tensor(found.changes[name].to_numpy()) for name in found.changes}
        order = torch.from_numpy(found.order)
        return {
            "activation_differences": columns["difference"],
            "sorted_indices": order,
            "sorted_differences": columns["difference"][order],
            "std_errors": columns["std_error"],
            "p_values": columns["p_value"],
            "q_values": columns["q_value"],
            "frequency_differences": torch.from_numpy(frequencies),
            "activations_M": found.base.activations(),
            "activations_MD": found.changed.activations(),
            "fvu": found.fits["all"],
        }

"""Model diffing: which latents of a dictionary a tuned model uses more, or less, than the initial.

diffing = ModelDiffing("artifacts/runs/one", "models/miniature-base", layer=2, device="cpu")
found = diffing.run_model_diffing(
    "models/miniature-base", "models/miniature-filtered", "data/miniature/forget.txt", 0
)
found["sorted_indices"][:10], found["sorted_differences"][:10]
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
import torch

from model_diffs.activations.passes import Reader
from model_diffs.core.errors import BadInput
from model_diffs.dictionaries import diffing_pass, itda_reading
from model_diffs.dictionaries.diffing_pass import Encoded, Plan
from model_diffs.dictionaries.diffing_sums import Changes
from model_diffs.dictionaries.itda import ITDA
from model_diffs.dictionaries.itda_reading import Reading
from model_diffs.models import devices, loading
from model_diffs.models.checkpoints import Checkpoint, check_configs
from model_diffs.stats.intervals import Interval, ratio_interval

# Documents kept per context that is shown: many begin alike, and then only one of them is.
SPARE = 4
# Side by side only where the models take less than this share of the free memory.
SHARE = 0.5


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
        """Whether the tuned model is fitted worse, beyond chance; one document cannot say."""
        return self.documents > 1 and float(self.change.low) > 0


class Comparison(NamedTuple):
    """The changed model against the base."""

    base: Encoded
    changed: Encoded
    changes: Changes
    fits: dict[str, Fit]
    """Of all texts, under `all`, and of each data set under its name where there are several."""
    order: np.ndarray
    """Latents, largest increase first."""


class ModelDiffing:
    """Differences between models in the latents of one ITDA dictionary."""

    def __init__(
        self,
        itda_path: str | Path,
        model_name: str,
        layer: int,
        device: str = "auto",
        seq_len: int = 128,
        batch_size: int = 16,
        *,
        dtype: str = "auto",
        trust_remote_code: bool = False,
        side_by_side: str = "auto",
        contexts: int = 5,
        seed: int = 42,
        scratch: str | Path = ".",
    ) -> None:
        """Open the dictionary and the tokenizer of `model_name`, the base.

        Where models do not fit side by side, files wait in `scratch` while the pass lasts. Raises
        BadInput where there is no dictionary, or it is of another layer or tokenizer.
        """
        self.device = devices.pick_device(device)
        self.itda = ITDA.from_pretrained(itda_path, self.device)
        if self.itda.layer != layer:
            raise BadInput(f"{itda_path} is a dictionary of layer {self.itda.layer}, not {layer}")
        self.model_name, self.seq_len, self.batch_size = model_name, seq_len, batch_size
        self.dtype, self.trust_remote_code = dtype, trust_remote_code
        self.side_by_side, self.contexts, self.seed = side_by_side, contexts, seed
        self.scratch = Path(scratch)
        known = self.itda.metadata.get("tokenizer_sha256")
        if known and known != itda_reading.tokenizer_sha256(self.tokenizer):
            raise BadInput(
                f"{model_name} has another tokenizer than {self.itda.metadata.get('lm_name')}, on "
                f"which {itda_path} was trained: train a dictionary for it"
            )

    @cached_property
    def tokenizer(self) -> Any:
        """The base's."""
        return loading.load_tokenizer(self.model_name, self.trust_remote_code)

    def read(self, names: Sequence[str], max_samples: int = 0) -> Reading:
        """The evaluation texts as tokens; the same positions are left out as in training."""
        return itda_reading.read(
            names,
            self.tokenizer,
            self.seq_len,
            keep_bos=bool(self.itda.metadata.get("keep_bos", False)),
            skip_first=int(self.itda.metadata.get("skip_first", 0)),
            max_samples=max_samples,
            seed=self.seed,
        )

    def compare(
        self,
        base: str,
        changed: Sequence[str],
        reading: Reading,
        max_steps: int = 0,
        keep_activations: bool = False,
    ) -> list[Comparison]:
        """Each changed model against the base, which is encoded once.

        Raises BadInput for models of another architecture or tokenizer, `max_steps` that end before
        a data set is reached, states that are not finite, and memory that does not suffice.
        """
        self._check_steps(reading, max_steps)
        checkpoints = [Checkpoint.open(name) for name in (base, *changed)]
        for checkpoint in checkpoints[1:]:
            check_configs(checkpoints[0], checkpoint)
        for name in (base, *changed):
            if name != self.model_name:
                other = loading.load_tokenizer(name, self.trust_remote_code)
                loading.check_same_tokenizer(self.model_name, self.tokenizer, name, other)
        plan = Plan(
            self.itda,
            reading,
            self.tokenizer.pad_token_id,
            self.batch_size,
            max_steps,
            SPARE * self.contexts,
            keep_activations,
            self.device,
        )
        scratch = None if self._all_fit(checkpoints) else self.scratch
        first, *others = diffing_pass.encode_models(self._load, base, changed, plan, scratch)
        return [self._comparison(first, one, reading) for one in others]

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
        one = isinstance(evaluation_dataset, str)
        reading = self.read([evaluation_dataset] if one else list(evaluation_dataset))  # type: ignore[list-item]
        (found,) = self.compare(
            initial_model_name, [fine_tuned_model_name], reading, max_steps, keep_activations
        )
        changes, order = found.changes, found.order
        frequency = found.changed.totals.frequency - found.base.totals.frequency
        arrays = {
            "activation_differences": changes.difference,
            "sorted_indices": order,
            "sorted_differences": changes.difference[order],
            "std_errors": changes.std_error,
            "p_values": changes.p_value,
            "q_values": changes.q_value,
            "frequency_differences": frequency,
        }
        return {
            **{name: torch.from_numpy(np.ascontiguousarray(a)) for name, a in arrays.items()},
            "activations_M": found.base.activations(),
            "activations_MD": found.changed.activations(),
            "fvu": found.fits["all"],
        }

    def _check_steps(self, reading: Reading, max_steps: int) -> None:
        last = reading.sources[: max_steps * self.batch_size or None][-1]
        if last < reading.sources[-1]:
            unread = ", ".join(reading.names[last + 1 :])
            raise BadInput(
                f"--max-steps {max_steps} ends before {unread}: use --max-samples, which takes "
                "some of each data set"
            )

    def _load(self, name: str) -> Reader:
        dtype = devices.pick_dtype(self.dtype, self.device)
        return Reader(name, loading.load_model(name, self.device, dtype, self.trust_remote_code))

    def _all_fit(self, checkpoints: Sequence[Checkpoint]) -> bool:
        if self.side_by_side != "auto":
            return self.side_by_side == "yes"
        dtype = devices.pick_dtype(self.dtype, self.device)
        values = sum(int(np.prod(c.shape(name))) for c in checkpoints for name in c.names)
        if self.device.type == "cuda":
            free = torch.cuda.mem_get_info(self.device)[0]
        else:
            free = psutil.virtual_memory().available
        return values * dtype.itemsize < SHARE * free

    def _comparison(self, base: Encoded, changed: Encoded, reading: Reading) -> Comparison:
        assert changed.paired is not None
        changes = changed.paired.changes()
        fits = {"all": self._fit(base, changed, np.ones(len(reading.sources), dtype=bool))}
        if len(reading.splits) > 1:
            for number, name in enumerate(reading.names):
                if (base.totals.counts.numpy()[reading.sources == number] > 0).any():
                    fits[name] = self._fit(base, changed, reading.sources == number)
        order = np.argsort(-changes.difference, kind="stable")
        return Comparison(base, changed, changes, fits, order)

    def _fit(self, base: Encoded, changed: Encoded, rows: np.ndarray) -> Fit:
        counts = base.totals.counts.numpy()
        rows = rows & (counts > 0)  # those that --max-steps left unread have none
        a, b = (one.totals.unexplained.numpy()[rows] for one in (base, changed))
        counts = counts[rows]
        ends_a, ends_b, ends_change = (ratio_interval(x, counts, self.seed) for x in (a, b, b - a))
        return Fit(ends_a, ends_b, ends_change, len(counts), int(counts.sum()))

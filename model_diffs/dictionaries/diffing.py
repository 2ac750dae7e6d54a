"""Model diffing: which latents of a dictionary a changed model uses more, or less, than its base.

diffing = ModelDiffing("artifacts/runs/one", "models/miniature-base", layer=2, device="cpu")
found = diffing.run_model_diffing(
    "models/miniature-base", "models/miniature-filtered", "data/miniature/forget.txt", 0
)
found["sorted_indices"][:10], found["sorted_differences"][:10]
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from model_diffs.activations.passes import Reader
from model_diffs.activations.tokens import TokenBatch, padded_batches
from model_diffs.core import folders
from model_diffs.core.errors import BadInput
from model_diffs.core.progress import progress
from model_diffs.data.texts import length_batches
from model_diffs.dictionaries import reading
from model_diffs.dictionaries.itda import ITDA
from model_diffs.dictionaries.options import Diffing
from model_diffs.dictionaries.pursuit import Codes
from model_diffs.dictionaries.reading import Reading
from model_diffs.dictionaries.sums import (
    BatchCodes,
    Changes,
    ModelTotals,
    PairedSums,
    sum_codes,
)
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
        layer: int | None,
        device: str = Diffing.device,
        seq_len: int = Diffing.seq_len,
        batch_size: int = Diffing.batch_size,
        *,
        options: Diffing | None = None,
    ) -> None:
        """Open the dictionary and the tokenizer of `model_name`, the base.

        Without `layer`, the dictionary's own is used. Where models do not fit side by side,
        temporary files go to `options.outroot`. Raises BadInput where there is no dictionary, or it
        is of another layer or tokenizer.
        """
        self.options = options or Diffing()
        self.device = devices.pick_device(device)
        self.dtype = devices.pick_dtype(self.options.dtype, self.device)
        self.itda = ITDA.from_pretrained(itda_path, self.device)
        if layer not in (None, self.itda.layer):
            raise BadInput(f"{itda_path} is a dictionary of layer {self.itda.layer}, not {layer}")
        self.model_name, self.seq_len, self.batch_size = model_name, seq_len, batch_size
        self.tokenizer = loading.load_tokenizer(model_name, self.options.trust_remote_code)
        known = self.itda.metadata.get("tokenizer_sha256")
        if known and known != reading.tokenizer_sha256(self.tokenizer):
            raise BadInput(
                f"{model_name} has another tokenizer than {self.itda.metadata.get('lm_name')}, on "
                f"which {itda_path} was trained: train a dictionary for it"
            )

    def read(self, names: Sequence[str]) -> Reading:
        """The evaluation texts as tokens; the same positions are left out as in training."""
        return reading.read(
            names,
            self.tokenizer,
            self.seq_len,
            keep_bos=bool(self.itda.metadata.get("keep_bos", False)),
            skip_first=int(self.itda.metadata.get("skip_first", 0)),
            max_samples=self.options.max_samples,
            seed=self.options.seed,
        )

    def load(self, name: str) -> Reader:
        """Load a model. Raises BadInput where the dictionary is not for its layers or width."""
        model = loading.load_model(name, self.device, self.dtype, self.options.trust_remote_code)
        reader = Reader(name, model)
        reading.check_layers(reader.anatomy, [self.itda.layer], name)
        width = int(model.config.get_text_config().hidden_size)  # type: ignore[union-attr, operator]
        if width != self.itda.activation_dim:
            raise BadInput(
                f"{name} is {width} wide and the dictionary's atoms {self.itda.activation_dim}: "
                f"it was trained on another model, {self.itda.metadata.get('lm_name')}"
            )
        return reader

    def compare(
        self,
        base: str,
        changed: Sequence[str],
        texts: Reading,
        max_steps: int = 0,
        keep_activations: bool = False,
    ) -> list[Comparison]:
        """Each changed model against the base, which is encoded once.

        Raises BadInput for models of another architecture or tokenizer, `max_steps` that end before
        a data set is reached, states that are not finite, and too little memory.
        """
        last = texts.sources[: max_steps * self.batch_size or None][-1]
        if last < texts.sources[-1]:
            raise BadInput(
                f"--max-steps {max_steps} ends before {', '.join(texts.names[last + 1 :])}: use "
                "--max-samples, which takes some of each data set"
            )
        names = [base, *changed]
        checkpoints = [Checkpoint.open(name) for name in names]
        for checkpoint in checkpoints[1:]:
            check_configs(checkpoints[0], checkpoint)
        different = list(dict.fromkeys([self.model_name, *names]))
        loading.common_tokenizer(different, self.options.trust_remote_code)
        size, sources = self.itda.size, torch.from_numpy(texts.sources)
        paired = [None, *(PairedSums(size) for _ in changed)]
        kept = SPARE * self.options.contexts
        found = [ModelTotals(size, sources, kept, one) for one in paired]

        def encode(todo: Sequence[tuple[Reader, ModelTotals]], scratch: Path | None = None) -> None:
            self._encode(todo, texts, max_steps, keep_activations, scratch)

        wanted = self.options.side_by_side
        with reading.out_of_memory(self.batch_size):
            if loading.fit_together(checkpoints, wanted, self.device, self.dtype):
                encode([(self.load(name), one) for name, one in zip(names, found, strict=True)])
            else:
                left = iter(found)
                with folders.scratch_folder(Path(self.options.outroot) / "itda_codes") as scratch:
                    loading.one_by_one(
                        self.load, names, lambda reader: encode([(reader, next(left))], scratch)
                    )
        return [self._comparison(found[0], one, texts) for one in found[1:]]

    @torch.inference_mode()
    def _encode(
        self,
        todo: Sequence[tuple[Reader, ModelTotals]],
        texts: Reading,
        max_steps: int,
        keep_activations: bool,
        scratch: Path | None,
    ) -> None:
        """Run models over all batches, the base first; with `scratch` its sums wait there."""
        tokens = texts.tokens
        lengths = tokens.lengths[: max_steps * self.batch_size or None]
        bar = progress(length_batches(lengths, self.batch_size), "encoding", unit="batch")
        pad_id = self.tokenizer.pad_token_id
        for number, at in enumerate(padded_batches(tokens, bar, pad_id, self.device)):
            file = (scratch or Path()) / f"{number}.npz"
            base: BatchCodes | None = None
            for reader, one in todo:
                codes = self._codes(reader, at)
                sums = sum_codes(codes, at.places, len(at.rows), self.itda.size)
                one.add(sums, at.rows)
                if one.paired is None:
                    base = sums
                    if scratch:
                        sums.save(file)
                else:
                    one.paired.add(base or BatchCodes.load(file), sums)
                if keep_activations:
                    one.keep(codes, at.places, tokens.documents[at.rows])

    def _codes(self, reader: Reader, at: TokenBatch) -> Codes:
        found: list[Codes] = []

        def receive(layer: int, hidden: Tensor) -> None:
            try:
                found.append(self.itda.encode(hidden[at.counted.to(hidden.device)]))
            except BadInput as error:
                raise BadInput(f"{reader.name}, block {layer}: {error}") from error

        reading.stream_block_outputs(reader.anatomy, at.batch, [self.itda.layer], receive)
        return found[0]

    def _comparison(self, base: ModelTotals, changed: ModelTotals, texts: Reading) -> Comparison:
        assert changed.paired is not None
        changes = changed.paired.changes()
        counts, a, b = (x.numpy() for x in (base.counts, base.unexplained, changed.unexplained))
        read = counts > 0  # --max-steps may leave documents unread
        subsets = {"all": read}
        if len(texts.splits) > 1:
            subsets |= {name: read & (texts.sources == i) for i, name in enumerate(texts.names)}
        fits = {}
        for name, rows in subsets.items():
            if rows.any():
                n, seed = counts[rows], self.options.seed
                fits[name] = Fit(
                    a=ratio_interval(a[rows], n, seed),
                    b=ratio_interval(b[rows], n, seed),
                    change=ratio_interval((b - a)[rows], n, seed),
                    documents=len(n),
                    tokens=int(n.sum()),
                )
        order = np.argsort(-changes.difference, kind="stable")
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
        (found,) = self.compare(
            initial_model_name,
            [fine_tuned_model_name],
            self.read(names),
            max_steps,
            keep_activations,
        )
        changes, order = found.changes, found.order
        arrays = {
            "activation_differences": changes.difference,
            "sorted_indices": order,
            "sorted_differences": changes.difference[order],
            "std_errors": changes.std_error,
            "p_values": changes.p_value,
            "q_values": changes.q_value,
            "frequency_differences": found.changed.frequency - found.base.frequency,
        }
        return {
            **{name: torch.from_numpy(np.ascontiguousarray(a)) for name, a in arrays.items()},
            "activations_M": found.base.activations(),
            "activations_MD": found.changed.activations(),
            "fvu": found.fits["all"],
        }

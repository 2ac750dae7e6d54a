"""How active a dimension of a layer is, or how much it matters to the loss: one pass, all layers.

Per dimension j the mean over the counted tokens t, signed and of absolute values, of

    values      a_tj
    gradients   g_tj = T · ∂L/∂a_tj

with T counted tokens and L the mean next-token loss over all predictions of all texts. The factor T
keeps the values from shrinking as texts are added; with it the signed mean is exactly ∂L/∂b_j for a
shift b_j of dimension j at every counted token. Sums over tokens are all that is kept, so neither
depends on how texts are batched. What a dimension is, a `Lens` says: a neuron of the activation, or
a feature of a sparse autoencoder.
"""

import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from model_diffs.activations.passes import Reader, Tokens
from model_diffs.activations.sums import place_of
from model_diffs.core.errors import BadInput
from model_diffs.core.progress import progress
from model_diffs.data.texts import length_batches
from model_diffs.importance.lenses import Activations, LayerSums, Lens
from model_diffs.importance.sites import counted_rows, frozen, loss_gradient, watch, watch_entries
from model_diffs.models import devices, loading


class Settings(NamedTuple):
    """What a pass looks at."""

    layers: tuple[int, ...]
    site: str = "mlp_out"
    """mlp_out, mlp_hidden or residual."""
    gradients: bool = False
    batch_size: int = 4
    seed: int = 42
    """Of the order of the batches."""


class Totals(NamedTuple):
    """What is finished: replaced as a whole after each batch, so that an interruption keeps it."""

    sums: dict[int, Tensor]
    """`[2, size]` fp64 per layer: signed, absolute."""
    texts: int = 0
    tokens: int = 0
    """Counted tokens, T."""
    predictions: int = 0
    """Next tokens in the loss, N; 0 in a pass over values."""
    loss: float = 0.0
    """Summed over predictions, nats."""


@dataclass
class Measured:
    """The means of a pass and how it went."""

    means: dict[int, Tensor]
    """`[2, size]` fp64 per layer on the CPU: mean, mean_abs."""
    totals: Totals
    partial: bool
    """Interrupted: the means are of the texts that were finished."""
    seconds: float
    layer_seconds: dict[int, float]
    """Spent on the dimensions of each layer, without the model's own pass."""


# ── the pass ──────────────────────────────────────────────────────────────────────────────────────


class _Timer:
    """Seconds spent on each layer's dimensions."""

    def __init__(self, layers: Sequence[int], device: torch.device) -> None:
        self.seconds, self.device = dict.fromkeys(layers, 0.0), device

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    @contextmanager
    def on(self, layer: int) -> Iterator[None]:
        started = self._now()
        yield
        self.seconds[layer] += self._now() - started


@dataclass
class _Pass:
    """One model, one lens: from a batch to its sums."""

    reader: Reader
    lens: Lens
    settings: Settings
    device: torch.device
    timer: _Timer
    show: Callable[[int], None]

    def run(self, batch: loading.Batch, counted: Tensor) -> Totals:
        """The sums of one batch. Raises BadInput where they are not finite."""
        settings, entered = self.settings, dict[int, Tensor]()
        wanted = settings.layers if self.lens.wants_entered else ()
        sums: dict[int, Tensor] = {}

        def add(layer: int, x: Tensor, gradient: Tensor | None) -> None:
            self.show(layer)
            with self.timer.on(layer):
                x = counted_rows(x, counted)
                held = LayerSums(self.lens.size(layer, x.shape[-1]), self.device)
                inside = counted_rows(entered[layer], counted) if layer in entered else None
                slope = None if gradient is None else counted_rows(gradient, counted)
                self.lens.add(held, layer, Activations(x, inside, slope))
                sums[layer] = held.sums.cpu()
                if not bool(torch.isfinite(held.sums).all()):
                    raise BadInput(
                        f"{self.reader.name}: layer {layer} is not finite: use --dtype fp32, or "
                        "look at the weights"
                    )

        with watch_entries(self.reader.anatomy, wanted, entered):
            run = self._gradients if settings.gradients else self._values
            loss, predictions = run(batch, add)
        return Totals(sums, len(counted), int(counted.sum()), predictions, loss)

    def _values(self, batch: loading.Batch, add: Callable[..., None]) -> tuple[float, int]:
        """No graph, no head, and no block behind the last layer that is looked at."""

        def receive(layer: int, x: Tensor) -> Tensor:
            add(layer, x, None)
            return x

        anatomy, layers = self.reader.anatomy, self.settings.layers
        with torch.inference_mode(), watch(anatomy, self.settings.site, layers, receive):
            loading.stream_states(anatomy, batch, lambda *_: None, last=max(layers) + 1)
        return 0.0, 0

    def _gradients(self, batch: loading.Batch, add: Callable[..., None]) -> tuple[float, int]:
        """One backward pass for all layers, down to the first of them."""
        held: dict[int, Tensor] = {}

        def receive(layer: int, x: Tensor) -> Tensor:
            held[layer] = x if x.requires_grad else x.detach().requires_grad_()
            return held[layer]

        settings = self.settings
        with (
            torch.enable_grad(),
            watch(self.reader.anatomy, settings.site, settings.layers, receive),
        ):
            logits = self.reader.model(
                input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False
            ).logits
        loss, predictions, slope = loss_gradient(logits, batch)
        gradients = torch.autograd.grad(logits, [held[i] for i in settings.layers], slope)
        del logits, slope
        for layer, gradient in zip(settings.layers, gradients, strict=True):
            add(layer, held.pop(layer).detach(), gradient)
        return loss, predictions


def _order(tokens: Tokens, settings: Settings) -> list[list[int]]:
    """This process's batches: the longest texts first, so that what does not fit fails at once,
    the others in a seeded order, so that an interrupted run has seen texts of all lengths."""
    batches = length_batches([len(ids) for ids in tokens.ids], settings.batch_size)
    count = devices.processes()[1]
    if count > len(batches):
        raise BadInput(
            f"{count} processes share {len(batches)} batches: lower --batch_size or --num_processes"
        )
    first, rest = batches[:count], batches[count:]
    random.Random(settings.seed).shuffle(rest)
    return devices.share([*first, *rest])


def _plus(a: Totals, b: Totals) -> Totals:
    sums = {layer: a.sums[layer] + more if a.sums else more for layer, more in b.sums.items()}
    return Totals(
        sums,
        a.texts + b.texts,
        a.tokens + b.tokens,
        a.predictions + b.predictions,
        a.loss + b.loss,
    )


def _over_processes(totals: Totals) -> Totals:
    if devices.processes()[1] == 1:
        return totals
    sums = {layer: devices.sum_over_processes(one) for layer, one in totals.sums.items()}
    counts = torch.tensor(totals[1:], dtype=torch.float64)
    texts, tokens, predictions, loss = devices.sum_over_processes(counts).tolist()
    return Totals(sums, int(texts), int(tokens), int(predictions), loss)


def measure(
    reader: Reader, tokens: Tokens, pad_id: int, lens: Lens, settings: Settings
) -> Measured:
    """Means of every dimension of every layer, from one pass over the texts.

    Ctrl-C after the first batch ends the pass: what is finished is returned, marked partial (under
    several processes it ends the run). Raises BadInput where nothing is predicted in a pass for
    gradients, where sums are not finite, and where the lens cannot read a layer.
    """
    device = next(reader.model.parameters()).device
    started, totals, partial = time.perf_counter(), Totals({}), False
    timer = _Timer(settings.layers, device)
    bar = progress(None, "gradients" if settings.gradients else "values", len(tokens.ids), "text")
    one = _Pass(
        *(reader, lens, settings, device, timer),
        lambda layer: bar.set_postfix_str(f"layer {layer}", refresh=False),
    )
    try:
        with bar, frozen(reader.model):
            for rows in _order(tokens, settings):
                batch = loading.pad_batch([tokens.ids[row] for row in rows], pad_id, device)
                place = place_of(batch, [tokens.starts[row] for row in rows], rows)
                totals = _plus(totals, one.run(batch, place.counted))
                bar.update(len(rows))
    except KeyboardInterrupt:
        if not totals.texts or devices.processes()[1] > 1:
            raise
        partial = True
    totals = _over_processes(totals)
    if settings.gradients and not totals.predictions:
        raise BadInput("all texts are single tokens: nothing is predicted, so there is no loss")
    count = totals.predictions if settings.gradients else totals.tokens
    means = {layer: sums / count for layer, sums in totals.sums.items()}
    seconds = time.perf_counter() - started
    return Measured(means, totals, partial, seconds, timer.seconds)

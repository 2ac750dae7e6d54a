"""How active a dimension of a layer is, or how much it matters to the loss: one pass, all layers.

Per dimension j the mean over the counted tokens t, signed and of absolute values, of

    values      a_tj
    gradients   g_tj = T · ∂L/∂a_tj

with T counted tokens and L the mean next-token loss over all predictions of all texts. With the
factor T the values do not shrink as texts are added, and the signed mean is ∂L/∂b_j for a shift b_j
of dimension j at every counted token. Only sums over tokens are kept, so that the result does not
depend on how texts are batched.
"""

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from model_diffs.activations.passes import Reader
from model_diffs.activations.tokens import TokenBatch, Tokens, own_share, padded_batches
from model_diffs.core.errors import BadInput
from model_diffs.core.progress import progress
from model_diffs.data.texts import length_batches
from model_diffs.importance.lenses import Lens
from model_diffs.importance.options import Measurement, Options
from model_diffs.importance.sites import counted_rows, frozen, loss_gradient, watch
from model_diffs.models import devices, loading


@dataclass(frozen=True)
class Totals:
    """What is finished; each batch gives a new one, so that an interruption loses no batch."""

    sums: dict[int, Tensor]
    """`[2, size]` fp64 per layer: signed, absolute."""
    texts: int = 0
    tokens: int = 0
    """Counted tokens, T."""
    predictions: int = 0
    """Next tokens in the loss, N; 0 in a pass over values."""
    loss: float = 0.0
    """Summed over predictions, nats."""

    @property
    def mean_loss(self) -> float | None:
        """In nats; None in a pass over values."""
        return self.loss / self.predictions if self.predictions else None

    def __add__(self, more: "Totals") -> "Totals":
        return Totals(
            {layer: self.sums.get(layer, 0) + sums for layer, sums in more.sums.items()},
            self.texts + more.texts,
            self.tokens + more.tokens,
            self.predictions + more.predictions,
            self.loss + more.loss,
        )

    def over_processes(self) -> "Totals":
        """The sum over all processes."""
        counts = [self.texts, self.tokens, self.predictions, self.loss]
        total = devices.sum_over_processes(torch.tensor(counts, dtype=torch.float64))
        texts, tokens, predictions = total[:3].long().tolist()
        sums = {layer: devices.sum_over_processes(one) for layer, one in self.sums.items()}
        return Totals(sums, texts, tokens, predictions, float(total[3]))


class Measured(NamedTuple):
    """The means of a pass and how it went."""

    means: dict[int, Tensor]
    """`[2, size]` fp64 per layer on the CPU: mean, mean_abs."""
    totals: Totals
    partial: bool
    """Interrupted: the means are of the texts that were finished."""
    seconds: float
    layer_seconds: dict[int, float]
    """Spent on the dimensions of each layer, without the model's own pass."""


def _run_model(
    reader: Reader,
    batch: loading.Batch,
    layers: Sequence[int],
    what: Measurement,
    add: Callable[[int, Tensor, Tensor | None], None],
) -> tuple[float, int]:
    """Hand layer, activation and gradient (or None) to `add`; return summed loss and predictions.

    A pass over values builds no graph and runs neither the head nor blocks after the last layer
    that is watched; one for gradients goes back once for all layers.
    """
    gradients = what.aggregate_by == "gradients"
    held: dict[int, Tensor] = {}

    def receive(layer: int, x: Tensor) -> Tensor:
        if gradients:
            held[layer] = x = x if x.requires_grad else x.detach().requires_grad_()
        else:
            add(layer, x, None)
        return x

    with torch.inference_mode(not gradients), watch(reader.anatomy, what.site, layers, receive):
        if not gradients:
            loading.stream_states(reader.anatomy, batch, lambda *_: None, last=max(layers) + 1)
            return 0.0, 0
        logits = reader.model(**batch._asdict(), use_cache=False).logits
    loss, predictions, slope = loss_gradient(logits, batch)
    slopes = torch.autograd.grad(logits, [held[layer] for layer in layers], slope)
    del logits, slope
    for layer, gradient in zip(layers, slopes, strict=True):
        add(layer, held.pop(layer).detach(), gradient)
    return loss, predictions


def _run_batch(
    reader: Reader, lens: Lens, what: Measurement, at: TokenBatch, seconds: dict[int, float]
) -> Totals:
    """The sums of one batch; `seconds` of each layer grow. BadInput where sums are not finite."""
    layers, device = list(seconds), at.counted.device
    entered: dict[int, Tensor] = {}
    sums: dict[int, Tensor] = {}

    def now() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    def keep(layer: int, x: Tensor) -> Tensor:
        entered[layer] = counted_rows(x.detach(), at.counted)
        return x

    def add(layer: int, x: Tensor, gradient: Tensor | None) -> None:
        started = now()
        slope = None if gradient is None else counted_rows(gradient, at.counted)
        x = counted_rows(x, at.counted)
        sums[layer] = lens.sums(layer, x, entered.get(layer), slope).cpu()
        if not bool(torch.isfinite(sums[layer]).all()):
            raise BadInput(
                f"{reader.name}: layer {layer} is not finite: use --dtype fp32, or look at the "
                "weights"
            )
        seconds[layer] += now() - started

    with watch(reader.anatomy, "mlp_in", layers if lens.wants_entered else [], keep):
        loss, predictions = _run_model(reader, at.batch, layers, what, add)
    return Totals(sums, len(at.rows), int(at.counted.sum()), predictions, loss)


def batch_order(tokens: Tokens, batch_size: int, seed: int) -> list[list[int]]:
    """This process's batches: the longest texts first, so that what does not fit fails at once,
    the others in a seeded order, so that an interrupted run has seen texts of all lengths."""
    batches, count = length_batches(tokens.lengths, batch_size), devices.processes()[1]
    first, rest = batches[:count], batches[count:]
    random.Random(seed).shuffle(rest)
    return own_share([*first, *rest])


def measure(
    reader: Reader,
    tokens: Tokens,
    pad_id: int,
    lens: Lens,
    layers: Sequence[int],
    options: Options,
) -> Measured:
    """Means of every dimension of every layer, from one pass over the texts.

    Ctrl-C after the first batch ends the pass: what is finished is returned, marked partial (under
    several processes it ends the run). Raises BadInput where nothing is predicted in a pass for
    gradients, where sums are not finite, and where the lens cannot read a layer.
    """
    device = next(reader.model.parameters()).device
    started, totals, partial = time.perf_counter(), Totals({}), False
    seconds = dict.fromkeys(layers, 0.0)
    order = batch_order(tokens, options.batch_size, options.seed)
    bar = progress(None, options.aggregate_by, len(tokens.ids), "text")
    try:
        with bar, frozen(reader.model):
            for at in padded_batches(tokens, order, pad_id, device):
                totals += _run_batch(reader, lens, options, at, seconds)
                bar.update(len(at.rows))
    except KeyboardInterrupt:
        if not totals.texts or devices.processes()[1] > 1:
            raise
        partial = True
    totals = totals.over_processes()
    count = totals.predictions if options.aggregate_by == "gradients" else totals.tokens
    if not count:
        raise BadInput("all texts are single tokens: nothing is predicted, so there is no loss")
    means = {layer: sums / count for layer, sums in totals.sums.items()}
    return Measured(means, totals, partial, time.perf_counter() - started, seconds)

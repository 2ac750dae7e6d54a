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
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from model_diffs.activations.passes import Reader
from model_diffs.activations.tokens import TokenBatch, Tokens, own_share, padded_batches
from model_diffs.core.errors import BadInput
from model_diffs.core.progress import progress
from model_diffs.data.texts import length_batches
from model_diffs.importance.gradients import frozen, loss_gradient
from model_diffs.importance.lenses import Lens
from model_diffs.importance.options import Options
from model_diffs.models import devices, loading
from model_diffs.models.sites import counted_rows, watch


class Measured(NamedTuple):
    """The means of a pass and how it went."""

    means: dict[int, Tensor]
    """`[2, size]` fp64 per layer on the CPU: mean, mean_abs."""
    texts: int
    asked_texts: int
    tokens: int
    """Counted tokens, T."""
    predictions: int
    """Next tokens in the loss, N; 0 in a pass over values."""
    mean_loss: float | None
    """In nats; None in a pass over values."""
    partial: bool
    """Interrupted: the means are of the texts that were finished."""
    seconds: float
    layer_seconds: dict[int, float]
    """Spent on the dimensions of each layer, without the model's own pass."""


class Sums(NamedTuple):
    """What is finished. Each batch gives a new one, so that an interruption loses no batch."""

    layers: dict[int, Tensor]
    """`[2, size]` fp64 per layer: signed, absolute."""
    counts: Tensor
    """`[4]` fp64: texts, counted tokens, predictions, loss summed over predictions in nats."""

    def plus(self, more: "Sums") -> "Sums":
        layers = {layer: self.layers.get(layer, 0) + one for layer, one in more.layers.items()}
        return Sums(layers, self.counts + more.counts)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _run_batch(
    reader: Reader, lens: Lens, options: Options, at: TokenBatch, seconds: dict[int, float]
) -> Sums:
    """The sums of one batch; `seconds` of each layer grow. BadInput where sums are not finite.

    A pass over values builds no graph and runs neither the head nor blocks after the last layer
    that is watched; one for gradients goes back once for all layers.
    """
    layers, device, gradients = [*seconds], at.counted.device, options.aggregate_by == "gradients"
    entered, held, sums = dict[int, Tensor](), dict[int, Tensor](), dict[int, Tensor]()

    def keep(layer: int, x: Tensor) -> Tensor:
        entered[layer] = counted_rows(x.detach(), at.counted)
        return x

    def add(layer: int, x: Tensor, gradient: Tensor | None = None) -> None:
        started = _now(device)
        slope = None if gradient is None else counted_rows(gradient, at.counted)
        x = counted_rows(x, at.counted)
        sums[layer] = lens.sums(layer, x, entered.get(layer), slope).cpu()
        if not bool(torch.isfinite(sums[layer]).all()):
            problem = f"layer {layer} is not finite: use --dtype fp32, or look at the weights"
            raise BadInput(f"{reader.name}: {problem}")
        seconds[layer] += _now(device) - started

    def receive(layer: int, x: Tensor) -> Tensor:
        if gradients:
            held[layer] = x = x if x.requires_grad else x.detach().requires_grad_()
        else:
            add(layer, x)
        return x

    loss, predictions = 0.0, 0
    with (
        torch.inference_mode(not gradients),
        watch(reader.anatomy, lens.entering or "mlp_in", layers if lens.entering else [], keep),
        watch(reader.anatomy, options.read_at, layers, receive),
    ):
        if gradients:
            logits = reader.model(**at.batch._asdict(), use_cache=False).logits
        else:
            loading.stream_states(reader.anatomy, at.batch, lambda *_: None, last=max(layers) + 1)
    if gradients:
        loss, predictions, slope = loss_gradient(logits, at.batch)
        slopes = torch.autograd.grad(logits, [held[layer] for layer in layers], slope)
        del logits, slope
        for layer, gradient in zip(layers, slopes, strict=True):
            add(layer, held.pop(layer).detach(), gradient)
    counts = [len(at.rows), int(at.counted.sum()), predictions, loss]
    return Sums(sums, torch.tensor(counts, dtype=torch.float64))


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
    device, seconds = reader.anatomy.embedding.weight.device, dict.fromkeys(layers, 0.0)
    started, partial = time.perf_counter(), False
    sums = Sums({}, torch.zeros(4, dtype=torch.float64))
    order = batch_order(tokens, options.batch_size, options.seed)
    bar = progress(None, options.aggregate_by, len(tokens.ids), "text")
    try:
        with bar, frozen(reader.model):
            for at in padded_batches(tokens, order, pad_id, device):
                sums = sums.plus(_run_batch(reader, lens, options, at, seconds))
                bar.update(len(at.rows))
    except KeyboardInterrupt:
        if not sums.layers or devices.processes()[1] > 1:
            raise
        partial = True
    *numbers, loss = devices.sum_over_processes(sums.counts).tolist()
    texts, counted, predictions = map(int, numbers)
    count = predictions if options.aggregate_by == "gradients" else counted
    if not count:
        raise BadInput("all texts are single tokens: nothing is predicted, so there is no loss")
    means = {i: devices.sum_over_processes(one) / count for i, one in sums.layers.items()}
    return Measured(
        means=means,
        texts=texts,
        asked_texts=len(tokens.ids),
        tokens=counted,
        predictions=predictions,
        mean_loss=loss / predictions if predictions else None,
        partial=partial,
        seconds=time.perf_counter() - started,
        layer_seconds=seconds,
    )

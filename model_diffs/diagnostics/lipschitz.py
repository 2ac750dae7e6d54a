"""Sensitivity of a model around a text: perturbations and gradients (the Jacobian: `jacobian`).

x are the outputs of the embedding module `[B, T, d]`, which the trunk takes as `inputs_embeds`:
scaling inside that module (Gemma) is part of x, positions (GPT-2, OPT) are not. f(x) are the final
hidden states, before the head, g(x) the logits. Positions that do not count (padding, BOS) are held
fixed and ignored. Every number is per text; texts of a batch do not interact, so one pass serves
all of them.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from model_diffs.diagnostics.jacobian import Function
from model_diffs.models import loading
from model_diffs.models.anatomy import Anatomy
from model_diffs.models.devices import wide

# ── feeding embeddings ────────────────────────────────────────────────────────────────────────────


class Output(NamedTuple):
    """Outputs of a model for embedded texts."""

    hidden: Tensor
    """`[B, T, hidden]`, after the final norm."""
    logits: Tensor
    """`[B, T, vocabulary]`, or in short, `[B, T, hidden]` (`ShortHead`)."""


def trunk_function(anatomy: Anatomy, attention_mask: Tensor) -> Function:
    """f: embeddings → final hidden states."""

    def f(x: Tensor) -> Tensor:
        return anatomy.trunk(inputs_embeds=x, attention_mask=attention_mask, use_cache=False)[0]

    return f


def logits_function(model: nn.Module, attention_mask: Tensor) -> Function:
    """g: embeddings → logits."""

    def g(x: Tensor) -> Tensor:
        return model(inputs_embeds=x, attention_mask=attention_mask, use_cache=False).logits

    return g


def run(model: nn.Module, anatomy: Anatomy, x: Tensor, attention_mask: Tensor) -> Output:
    """Hidden states and logits of one pass."""
    kept: list[Tensor] = []
    with loading.hooks() as handles:
        keep = anatomy.trunk.register_forward_hook(lambda _, args, output: kept.append(output[0]))
        handles.append(keep)
        logits = model(inputs_embeds=x, attention_mask=attention_mask, use_cache=False).logits
    return Output(kept[-1], logits)


def make_differentiable(model: Any) -> None:
    """Use implementations with second derivatives: fused attention and grouped experts have none.

    The parameters are frozen: only derivatives with respect to x are wanted.
    """
    model.requires_grad_(False)
    model.set_attn_implementation("eager")
    if hasattr(model, "set_experts_implementation") and model._can_set_experts_implementation():
        model.set_experts_implementation("eager")


# ── the head ──────────────────────────────────────────────────────────────────────────────────────

_ROWS = 1 << 13
"""Of the head's matrix that are multiplied at a time."""


class ShortHead(NamedTuple):
    """A linear head h ↦ W h + b by its Gram matrix: lengths and differences of logits without them.

    With RᵀR the Gram matrix of (W, b), R (h, 1) has the length of the logits and differs between
    two states by as much. It has hidden + 1 entries at most where the logits have a vocabulary's.
    """

    factor: Tensor
    """`[entries, hidden]` fp32, the columns of R for h."""
    shift: Tensor
    """`[entries]` fp32, its column for 1: zero where there is no bias."""
    vocabulary: int

    def logits(self, hidden: Tensor) -> Tensor:
        """`[…, entries]` fp32 for states `[…, hidden]`."""
        return hidden.float() @ self.factor.T + self.shift

    def metric(self, u: Tensor) -> Tensor:
        """WᵀW u for changes of states `[…, hidden]`."""
        return u.float() @ self.factor.T @ self.factor


def short_head(model: nn.Module, anatomy: Anatomy, ids: Sequence[int]) -> ShortHead | None:
    """The head in short; None where the logits are no linear map of the states.

    That is looked up on the text `ids`: Gemma 2, for example, caps its logits.
    """
    head = anatomy.head
    if not isinstance(head, nn.Linear):
        return None
    x = anatomy.embedding(torch.tensor([ids], device=anatomy.embedding.weight.device))
    with torch.no_grad():
        found = run(model, anatomy, x, torch.ones(x.shape[:2], dtype=torch.long, device=x.device))
        gap = (head(found.hidden).float() - found.logits.float()).abs().max()
    if not gap <= 1e-6 * found.logits.abs().max():
        return None
    W = head.weight.detach()
    bias = W.new_zeros(len(W)) if head.bias is None else head.bias.detach()
    gram = wide(W.new_zeros(W.shape[1] + 1, W.shape[1] + 1))
    for rows, shifts in zip(W.split(_ROWS), bias.split(_ROWS), strict=True):
        part = torch.cat([rows, shifts[:, None]], 1).float()
        gram += wide(part.T @ part)
    values, vectors = torch.linalg.eigh(gram)
    factor = (values.clamp_min(0).sqrt()[:, None] * vectors.T).float().to(W.device)
    return ShortHead(factor[:, :-1].contiguous(), factor[:, -1].contiguous(), len(W))


# ── perturbations and gradients ───────────────────────────────────────────────────────────────────


def norms(values: Tensor, counted: Tensor) -> Tensor:
    """Frobenius norm per text `[B]` fp32 over the counted tokens of `[B, T, d]`."""
    kept = torch.where(counted[..., None], values.float(), 0.0)
    return torch.linalg.vector_norm(kept, dim=(1, 2))


def perturbations(
    x: Tensor, counted: Tensor, epsilon: float, count: int, seeds: Sequence[int]
) -> Tensor:
    """δ `[count, B, T, d]`: uniform on the sphere of radius ε‖x‖ of each counted token, else zero.

    Each text draws from its own seed, token by token, so neither the batch nor its padding matters.
    """
    drawn = torch.zeros(count, *x.shape)
    for row, seed in enumerate(seeds):
        places = counted[row].nonzero().flatten().cpu()
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(count, len(places), x.shape[2], generator=generator)
        drawn[:, row, places] = noise / torch.linalg.vector_norm(noise, dim=-1, keepdim=True)
    radius = epsilon * torch.linalg.vector_norm(x.float(), dim=-1, keepdim=True)
    return (drawn.to(x.device) * radius).to(x.dtype)


class Response(NamedTuple):
    """What perturbations do to a text, `[B]` each; norms are Frobenius over the counted tokens."""

    hidden: Tensor
    """Largest ‖f(x+δ) − f(x)‖ / ‖δ‖."""
    logits: Tensor
    """Largest ‖g(x+δ) − g(x)‖ / ‖δ‖."""
    variance: Tensor
    """Of the logits over the δ: unbiased, averaged over the counted tokens and the vocabulary."""
    hidden_scale: Tensor
    """‖x‖ / ‖f(x)‖: times it, a quotient is one of relative changes, (‖Δf‖/‖f‖) / (‖δ‖/‖x‖)."""
    logits_scale: Tensor
    """‖x‖ / ‖g(x)‖."""
    first: Tensor
    """f(x+δ) − f(x) for the first δ, `[B, T, hidden]` fp32."""


def respond(
    outputs: Callable[[Tensor], Output],
    x: Tensor,
    counted: Tensor,
    deltas: Tensor,
    per_pass: int,
    vocabulary: int | None = None,
    centre: Output | None = None,
) -> Response:
    """Responses to the perturbations `deltas`, `per_pass` x + δ at a time.

    ‖δ‖ is that of the difference in x's dtype. `outputs` takes `[rows · B, T, d]`. `vocabulary` is
    the number of logits where `outputs` gives them in short; `centre` the outputs at x, if known.
    """
    centre = outputs(x) if centre is None else centre
    largest = torch.zeros(2, len(x), device=x.device)
    total, second = (torch.zeros_like(centre.logits, dtype=torch.float32) for _ in range(2))
    first: Tensor | None = None
    for group in deltas.split(per_pass):
        moved = x + group
        found = outputs(moved.flatten(0, 1))
        hidden, logits = (part.unflatten(0, (len(group), -1)) for part in found)
        for i in range(len(group)):
            size = norms(moved[i].float() - x.float(), counted)
            shift = logits[i].float() - centre.logits.float()
            change = hidden[i].float() - centre.hidden.float()
            first = change if first is None else first
            moved_by = [norms(change, counted), norms(shift, counted)]
            largest = torch.maximum(largest, torch.stack(moved_by) / size)
            total += shift
            second += shift.square()
    count = len(deltas)
    variance = (second - total.square() / count) / (count - 1)
    per_token = variance.clamp_min(0).sum(-1) / (vocabulary or variance.shape[-1])
    mean_variance = torch.where(counted, per_token, 0.0).sum(1) / counted.sum(1)
    scales = [norms(x, counted) / norms(part, counted) for part in centre]
    assert first is not None, "there is a perturbation"
    return Response(largest[0], largest[1], mean_variance, scales[0], scales[1], first)


def _mean_losses(logits: Tensor, batch: loading.Batch) -> tuple[Tensor, Tensor]:
    """Mean next-token loss of each text in nats, and the number of predicted tokens: `[B]` each.

    Every token with a predecessor is predicted, whether it counts or not.
    """
    predicted = batch.attention_mask[:, 1:].bool()
    losses = nn.functional.cross_entropy(
        logits[:, :-1].float().transpose(1, 2), batch.input_ids[:, 1:], reduction="none"
    )
    tokens = predicted.sum(1)
    return torch.where(predicted, losses, 0.0).sum(1) / tokens.clamp_min(1), tokens


def gradient_norms(
    g: Function, x: Tensor, batch: loading.Batch, counted: Tensor, back: Function | None = None
) -> tuple[Tensor, Tensor]:
    """‖∂L/∂x‖ over the counted tokens and L, the text's mean next-token loss in nats: `[B]` each.

    g are the logits, of x or, with `back`, of states that x gives: that takes ∂L/∂states to ∂L/∂x.
    NaN where a text has a single token and so predicts none.
    """
    x = x.detach().requires_grad_()
    loss, tokens = _mean_losses(g(x), batch)
    # The gradient of the sum contains each text's own: no other text's loss depends on its x.
    (gradient,) = torch.autograd.grad(loss.sum(), x)
    gradient = gradient if back is None else back(gradient)
    norm = torch.where(tokens > 0, norms(gradient, counted), math.nan)
    return norm, torch.where(tokens > 0, loss.detach(), math.nan)

"""Sensitivity of a model around a text: perturbations, gradients and the norm of the Jacobian.

x are the outputs of the embedding module `[B, T, d]`, which the trunk takes as `inputs_embeds`:
scaling inside that module (Gemma) is part of x, positions (GPT-2, OPT) are not. f(x) are the final
hidden states, before the head, g(x) the logits. Positions that do not count (padding, BOS) are held
fixed and ignored. Every number is per text; texts of a batch do not interact, so one pass, or one
product with the Jacobian, serves all of them.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from model_diffs.models import loading
from model_diffs.models.anatomy import Anatomy
from model_diffs.models.devices import wide

Function = Callable[[Tensor], Tensor]
"""`[B, T, d]` → `[B, T, e]`, each text by itself."""

# ── feeding embeddings ────────────────────────────────────────────────────────────────────────────


class Output(NamedTuple):
    """Outputs of a model for embedded texts."""

    hidden: Tensor
    """`[B, T, hidden]`, after the final norm."""
    logits: Tensor
    """`[B, T, vocabulary]`."""


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


def respond(
    outputs: Callable[[Tensor], Output], x: Tensor, counted: Tensor, deltas: Tensor, per_pass: int
) -> Response:
    """Responses to the perturbations `deltas`, `per_pass` x + δ at a time.

    ‖δ‖ is that of the difference in x's dtype. `outputs` takes `[rows · B, T, d]`.
    """
    centre = outputs(x)
    largest = torch.zeros(2, len(x), device=x.device)
    first, second = (torch.zeros_like(centre.logits, dtype=torch.float32) for _ in range(2))
    for group in deltas.split(per_pass):
        moved = x + group
        found = outputs(moved.flatten(0, 1))
        hidden, logits = (part.unflatten(0, (len(group), -1)) for part in found)
        for i in range(len(group)):
            size = norms(moved[i].float() - x.float(), counted)
            shift = logits[i].float() - centre.logits.float()
            moved_by = [norms(hidden[i].float() - centre.hidden.float(), counted)]
            moved_by.append(norms(shift, counted))
            largest = torch.maximum(largest, torch.stack(moved_by) / size)
            first += shift
            second += shift.square()
    count = len(deltas)
    variance = (second - first.square() / count) / (count - 1)
    per_token = variance.clamp_min(0).mean(-1)
    mean_variance = torch.where(counted, per_token, 0.0).sum(1) / counted.sum(1)
    scales = [norms(x, counted) / norms(part, counted) for part in centre]
    return Response(largest[0], largest[1], mean_variance, scales[0], scales[1])


def gradient_norms(
    outputs: Callable[[Tensor], Output], x: Tensor, batch: loading.Batch, counted: Tensor
) -> tuple[Tensor, Tensor]:
    """‖∂L/∂x‖ over the counted tokens and L, the text's mean next-token loss in nats: `[B]` each.

    Every token with a predecessor is predicted, whether it counts or not. NaN where a text has a
    single token and so predicts none.
    """
    x = x.detach().requires_grad_()
    logits = outputs(x).logits[:, :-1].float()
    predicted = batch.attention_mask[:, 1:].bool()
    losses = nn.functional.cross_entropy(
        logits.transpose(1, 2), batch.input_ids[:, 1:], reduction="none"
    )
    tokens = predicted.sum(1)
    loss = torch.where(predicted, losses, 0.0).sum(1) / tokens.clamp_min(1)
    # The gradient of the sum contains each text's own: no other text's loss depends on its x.
    (gradient,) = torch.autograd.grad(loss.sum(), x)
    norm = torch.where(tokens > 0, norms(gradient, counted), math.nan)
    return norm, torch.where(tokens > 0, loss.detach(), math.nan)


# ── the Jacobian ──────────────────────────────────────────────────────────────────────────────────


class JacobianNorm(NamedTuple):
    """Largest singular value of ∂f/∂x per text `[B]`, over counted tokens on both sides."""

    value: Tensor
    iterations: Tensor
    """Products with JᵀJ."""
    converged: Tensor
    """bool"""


def _gram_product(f: Function, x: Tensor, counted: Tensor) -> Callable[[Tensor], Tensor]:
    """v ↦ JᵀJ v for J = ∂f/∂x at x.

    Jᵀu is a backward pass, and Jv the derivative of Jᵀu with respect to u: the forward pass is run
    once and kept, which is cheaper than forward-mode derivatives.
    """
    mask = counted[..., None].to(x.dtype)
    leaf = x.detach().requires_grad_()
    output = f(leaf)
    u = torch.zeros_like(output, requires_grad=True)
    (pulled,) = torch.autograd.grad(output, leaf, u, create_graph=True)  # Jᵀu, linear in u

    def product(v: Tensor) -> Tensor:
        (moved,) = torch.autograd.grad(pulled, u, v, retain_graph=True)
        (back,) = torch.autograd.grad(output, leaf, moved * mask, retain_graph=True)
        return back * mask

    return product


def jacobian_norms(
    f: Function,
    x: Tensor,
    counted: Tensor,
    seeds: Sequence[int],
    tolerance: float,
    max_iterations: int,
) -> JacobianNorm:
    """σ₁ of the Jacobian at x: power iteration on JᵀJ, accelerated by Lanczos (Golub, Kahan 1965).

    The largest Ritz value over all powers so far replaces the Rayleigh quotient of the last one,
    and is never smaller. A text has converged when two successive steps change its value by less
    than `tolerance`, relatively. One `[B, T, d]` fp32 basis vector per step is kept, for
    reorthogonalisation.
    """
    product_of = _gram_product(f, x, counted)
    v = perturbations(torch.ones_like(x), counted, 1.0, 1, seeds)[0]
    v = v / norms(v, counted)[:, None, None].to(x.dtype)
    basis: list[Tensor] = []
    tridiagonal = np.zeros((len(x), max_iterations + 1, max_iterations + 1))
    values, quiet, iterations = np.zeros(len(x)), np.zeros(len(x), int), np.zeros(len(x), int)
    for step in range(max_iterations):
        product = product_of(v).float()
        basis.append(v.float())
        tridiagonal[:, step, step] = wide(_inner(basis[-1], product)).cpu()
        largest = np.linalg.eigvalsh(tridiagonal[:, : step + 1, : step + 1])[:, -1]
        running, found = quiet < 2, np.sqrt(largest.clip(0))
        iterations += running
        still = np.abs(found - values) <= tolerance * found
        quiet = np.where(running, np.where(still, quiet + 1, 0), quiet)
        values = np.where(running, found, values)
        if (quiet == 2).all():
            break
        v, beta = _next_direction(product, basis)
        v = v.to(x.dtype)
        tridiagonal[:, step + 1, step] = wide(beta).cpu()  # eigvalsh reads the lower triangle
    return JacobianNorm(*(torch.from_numpy(part) for part in (values, iterations, quiet == 2)))


def _inner(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum((1, 2))


def _next_direction(product: Tensor, basis: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """The part of JᵀJv orthogonal to the basis, normalised, and its norm.

    Orthogonalised twice, against rounding. Zero where the Krylov space is exhausted.
    """
    size = torch.linalg.vector_norm(product, dim=(1, 2))
    for _ in range(2):
        for q in basis:
            product = product - _inner(q, product)[:, None, None] * q
    beta = torch.linalg.vector_norm(product, dim=(1, 2))
    beta = torch.where(beta > 1e-6 * size, beta, 0.0)
    divisor = beta[:, None, None]
    return torch.where(divisor > 0, product / divisor, 0.0), beta

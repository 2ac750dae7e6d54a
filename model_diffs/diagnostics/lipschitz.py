"""How sensitive a model is around a text: perturbations, gradients and the norm of the Jacobian.

x are the outputs of the embedding module `[B, T, d]`, f(x) the final hidden states. Positions that
do not count (padding, BOS) are held fixed and not looked at. Everything is per text; texts of a
batch do not touch one another, so that one pass, or one product with the Jacobian, serves them all.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from model_diffs.models import loading
from model_diffs.models.anatomy import Anatomy

Function = Callable[[Tensor], Tensor]
"""`[B, T, d]` → `[B, T, e]`, each text by itself."""

# ── feeding embeddings ────────────────────────────────────────────────────────────────────────────


class Output(NamedTuple):
    """What a model gives for embedded texts."""

    hidden: Tensor
    """`[B, T, hidden]`, after the final norm."""
    logits: Tensor
    """`[B, T, vocabulary]`."""


def embed(anatomy: Anatomy, batch: loading.Batch) -> Tensor:
    """What the embedding module gives: exactly what the trunk takes as `inputs_embeds`.

    Scaling inside the embedding module (Gemma) is part of x; positions (GPT-2, OPT) are not.
    """
    with torch.no_grad():
        return anatomy.embedding(batch.input_ids)


def trunk_function(anatomy: Anatomy, attention_mask: Tensor) -> Function:
    """f: embeddings → final hidden states."""

    def f(x: Tensor) -> Tensor:
        return anatomy.trunk(inputs_embeds=x, attention_mask=attention_mask, use_cache=False)[0]

    return f


def run(model: nn.Module, anatomy: Anatomy, x: Tensor, attention_mask: Tensor) -> Output:
    """Hidden states and logits of one pass."""
    kept: list[Tensor] = []

    def keep(module: nn.Module, args: Any, output: Any) -> None:
        kept.append(output[0])

    with loading.hooks() as handles:
        handles.append(anatomy.trunk.register_forward_hook(keep))
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


# ── perturbations ─────────────────────────────────────────────────────────────────────────────────


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


class Spread:
    """Mean variance of outputs over perturbations, from their distance to the unperturbed one."""

    def __init__(self, centre: Tensor) -> None:
        self.centre, self.count = centre.float(), 0
        self.first, self.second = (torch.zeros_like(self.centre) for _ in range(2))

    def add(self, output: Tensor) -> None:
        """Add the output of one perturbation, of the shape of the unperturbed one."""
        shift = output.float() - self.centre
        self.first += shift
        self.second += shift.square()
        self.count += 1

    def per_text(self, counted: Tensor) -> Tensor:
        """Unbiased variance, averaged over the counted tokens and the vocabulary: `[B]`."""
        variance = (self.second - self.first.square() / self.count) / (self.count - 1)
        per_token = variance.clamp_min(0).mean(-1)
        return torch.where(counted, per_token, 0.0).sum(1) / counted.sum(1)


class Response(NamedTuple):
    """What perturbations do, per text `[B]`."""

    lipschitz: Tensor
    """max over perturbations of ‖f(x+δ) − f(x)‖ / ‖δ‖, Frobenius over the counted tokens."""
    output_variance: Tensor


def respond(
    outputs: Callable[[Tensor], Output],
    x: Tensor,
    counted: Tensor,
    deltas: Tensor,
    per_pass: int,
) -> Response:
    """Run the model on x + δ, `per_pass` perturbations at a time.

    ‖δ‖ is that of the difference as x's dtype holds it. `outputs` takes `[rows · B, T, d]`.
    """
    centre = outputs(x)
    spread = Spread(centre.logits)
    largest = torch.zeros(len(x), device=x.device)
    for group in deltas.split(per_pass):
        moved = x + group
        found = outputs(moved.flatten(0, 1))
        hidden = found.hidden.unflatten(0, (len(group), -1))
        logits = found.logits.unflatten(0, (len(group), -1))
        for i in range(len(group)):
            size = norms(moved[i].float() - x.float(), counted)
            moved_by = norms(hidden[i].float() - centre.hidden.float(), counted)
            largest = torch.maximum(largest, moved_by / size)
            spread.add(logits[i])
    return Response(largest, spread.per_text(counted))


# ── gradients ─────────────────────────────────────────────────────────────────────────────────────


class Gradient(NamedTuple):
    """Per text `[B]`; NaN where a text has a single token and so predicts none."""

    norm: Tensor
    loss: Tensor


def gradient_norms(
    outputs: Callable[[Tensor], Output], x: Tensor, batch: loading.Batch, counted: Tensor
) -> Gradient:
    """‖∂L/∂x‖ over the counted tokens, L the text's mean next-token loss in nats.

    Every token that has another before it is predicted, BOS and first positions only predict.
    """
    x = x.detach().requires_grad_()
    logits = outputs(x).logits[:, :-1].float()
    predicted = batch.attention_mask[:, 1:].bool()
    losses = nn.functional.cross_entropy(
        logits.transpose(1, 2), batch.input_ids[:, 1:], reduction="none"
    )
    tokens = predicted.sum(1)
    loss = torch.where(predicted, losses, 0.0).sum(1) / tokens.clamp_min(1)
    # The sum's gradient holds each text's own: no other text's loss depends on its x.
    (gradient,) = torch.autograd.grad(loss.sum(), x)
    undefined = torch.full_like(loss, math.nan)
    defined = tokens > 0
    return Gradient(
        torch.where(defined, norms(gradient, counted), undefined),
        torch.where(defined, loss.detach(), undefined),
    )


# ── the Jacobian ──────────────────────────────────────────────────────────────────────────────────


class JacobianNorm(NamedTuple):
    """Largest singular value of ∂f/∂x per text `[B]`, over counted tokens on both sides."""

    value: Tensor
    iterations: Tensor
    """Products with JᵀJ."""
    converged: Tensor
    """bool"""


def jacobian_norms(
    f: Function,
    x: Tensor,
    counted: Tensor,
    seeds: Sequence[int],
    tolerance: float = 1e-3,
    max_iterations: int = 100,
) -> JacobianNorm:
    """σ₁ of the Jacobian at x: power iteration on JᵀJ, accelerated by Lanczos (Golub, Kahan 1965).

    The largest Ritz value over all powers so far replaces the Rayleigh quotient of the last one:
    never smaller for the same products. A text is done when two successive steps change it by less
    than `tolerance`, relatively. Jᵀu is a backward pass, and Jv the derivative of Jᵀu with respect
    to u: the forward pass is run once and kept, which is cheaper than forward derivatives. Basis
    vectors are kept, one `[B, T, d]` fp32 per step, against rounding.
    """
    mask = counted[..., None].to(x.dtype)
    leaf = x.detach().requires_grad_()
    output = f(leaf)
    u = torch.zeros_like(output, requires_grad=True)
    (pulled,) = torch.autograd.grad(output, leaf, u, create_graph=True)  # Jᵀu, linear in u

    def gram_product(v: Tensor) -> Tensor:
        (moved,) = torch.autograd.grad(pulled, u, v, retain_graph=True)
        (back,) = torch.autograd.grad(output, leaf, moved * mask, retain_graph=True)
        return back * mask

    v = _start(x, counted, seeds)
    basis: list[Tensor] = []
    alphas: list[np.ndarray] = []
    betas: list[np.ndarray] = []
    values, quiet = np.zeros(len(x)), np.zeros(len(x), int)
    iterations = np.zeros(len(x), int)
    for step in range(max_iterations):
        product = gram_product(v)
        basis.append(v.float())
        alphas.append(_inner(basis[-1], product.float()).double().cpu().numpy())
        iterations[quiet < 2] = step + 1
        found = np.where(quiet < 2, _largest_ritz(alphas, betas), values)
        still = np.abs(found - values) <= tolerance * found
        quiet = np.where(still, quiet + 1, np.where(quiet < 2, 0, quiet))
        values = found
        if (quiet >= 2).all():
            break
        v, beta = _next_direction(product.float(), basis)
        betas.append(beta.double().cpu().numpy())
        v = v.to(x.dtype)
    return JacobianNorm(
        torch.from_numpy(np.asarray(values)),
        torch.from_numpy(iterations),
        torch.from_numpy(quiet >= 2),
    )


def _start(x: Tensor, counted: Tensor, seeds: Sequence[int]) -> Tensor:
    """A random direction of norm 1 per text, zero where tokens do not count."""
    start = perturbations(torch.ones_like(x), counted, 1.0, 1, seeds)[0]
    return start / norms(start, counted)[:, None, None].to(x.dtype)


def _inner(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum((1, 2))


def _next_direction(product: Tensor, basis: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """The part of JᵀJv outside the basis, normalised, and its norm; twice, against rounding.

    Zero where nothing is left: the space that the start reaches is exhausted.
    """
    size = torch.linalg.vector_norm(product, dim=(1, 2))
    for _ in range(2):
        for q in basis:
            product = product - _inner(q, product)[:, None, None] * q
    beta = torch.linalg.vector_norm(product, dim=(1, 2))
    beta = torch.where(beta > 1e-6 * size, beta, torch.zeros_like(beta))
    direction = product / torch.where(beta > 0, beta, torch.ones_like(beta))[:, None, None]
    return direction * (beta > 0)[:, None, None], beta


def _largest_ritz(alphas: Sequence[np.ndarray], betas: Sequence[np.ndarray]) -> np.ndarray:
    """Root of the largest eigenvalue of each text's tridiagonal matrix: `[B]`."""
    steps, texts = len(alphas), len(alphas[0])
    T = np.zeros((texts, steps, steps))
    for i, alpha in enumerate(alphas):
        T[:, i, i] = alpha
    for i, beta in enumerate(betas):
        T[:, i, i + 1] = T[:, i + 1, i] = beta
    return np.sqrt(np.clip(np.linalg.eigvalsh(T)[:, -1], 0, None))

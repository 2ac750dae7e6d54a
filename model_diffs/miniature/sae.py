"""Small TopK autoencoders of the miniature's MLP outputs, so that the SAE tool has some to open.

Trained in plain torch: the trainer of the format's own library needs a GPU for its decoder.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from model_diffs.activations.tokens import Tokens, padded_batches
from model_diffs.core.progress import progress
from model_diffs.data.texts import length_batches
from model_diffs.dictionaries.sae import Sae
from model_diffs.miniature.recipe import SaeRecipe
from model_diffs.models import loading
from model_diffs.models.anatomy import locate
from model_diffs.models.sites import counted_rows, watch


class Trained(NamedTuple):
    """A trained SAE and how well it fits."""

    sae: Sae
    fvu: float
    """Fraction of variance unexplained, over all tokens it was trained on."""
    dead: float
    """Share of features that are active at no token."""


def mlp_outputs(model: nn.Module, tokens: Tokens, pad_id: int, texts_per_pass: int) -> list[Tensor]:
    """What each block's MLP gives at the counted tokens, `[tokens, hidden]` fp32 per block."""
    anatomy = locate(model)
    layers, device = range(len(anatomy.blocks)), next(model.parameters()).device
    parts: list[list[Tensor]] = [[] for _ in layers]
    batches = length_batches(tokens.lengths, texts_per_pass)
    bar = progress(batches, "MLP outputs", unit="batch")
    for at in padded_batches(tokens, bar, pad_id, device):

        def receive(layer: int, x: Tensor, counted: Tensor = at.counted) -> Tensor:
            parts[layer].append(counted_rows(x, counted).float())
            return x

        with torch.no_grad(), watch(anatomy, "mlp_out", layers, receive):
            loading.stream_states(anatomy, at.batch, lambda *_: None)
    return [torch.cat(part) for part in parts]


def train(x: Tensor, recipe: SaeRecipe, seed: int, name: str = "SAE") -> Trained:
    """A TopK SAE of x `[tokens, d]` (Gao et al. 2024): Adam on the squared error, rows of W_dec of
    unit length, features that have died given the tokens that are explained worst."""
    draw = torch.Generator().manual_seed(seed)
    d, size = x.shape[1], recipe.expansion_factor * x.shape[1]
    decoder = torch.randn(size, d, generator=draw).to(x.device)
    decoder = nn.Parameter(decoder / decoder.norm(dim=1, keepdim=True))
    encoder, encoder_bias = nn.Parameter(decoder.detach().clone()), nn.Parameter(x.new_zeros(size))
    bias = nn.Parameter(x.mean(0))
    # Its tensors are the parameters, which are trained in place.
    sae = Sae(encoder, encoder_bias, decoder, bias, "topk", subtract=True, k=recipe.k)
    optimizer = torch.optim.Adam([encoder, encoder_bias, decoder, bias], recipe.lr)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, 2.0 * (1 - step / recipe.steps))
    )
    fired = torch.zeros(size, dtype=torch.bool, device=x.device)
    bar = progress(range(recipe.steps), name, unit="step")
    for step in bar:
        rows = x[torch.randint(len(x), (recipe.batch_size,), generator=draw).to(x.device)]
        found = sae.encode(rows)
        fired[found.features] = True
        error = rows - sae.decode(found, len(rows))
        loss = error.pow(2).sum(1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            decoder.div_(decoder.norm(dim=1, keepdim=True))
            if step % 50 == 49 and step < recipe.steps * 0.7:
                _revive(sae, optimizer, ~fired, error)
                fired.zero_()
        bar.set_postfix(error=f"{loss.item():.4f}", refresh=False)
    for part in (encoder, encoder_bias, decoder, bias):
        part.requires_grad_(False)
    return _fit(sae, x)


def _revive(sae: Sae, optimizer: torch.optim.Optimizer, dead: Tensor, error: Tensor) -> None:
    """Point features that fired at no token since the last time at what is explained worst."""
    places = dead.nonzero()[:, 0][: len(error)]
    worst = error.norm(dim=1).argsort(descending=True, stable=True)[: len(places)]
    rows = error[worst] / error[worst].norm(dim=1, keepdim=True).clamp(min=1e-8)
    sae.decoder[places], sae.encoder[places], sae.encoder_bias[places] = rows, rows, 0.0
    for part in (sae.encoder, sae.encoder_bias, sae.decoder):
        for name in ("exp_avg", "exp_avg_sq"):
            optimizer.state[part][name][places] = 0.0


@torch.no_grad()
def _fit(sae: Sae, x: Tensor) -> Trained:
    fired = torch.zeros(sae.d_sae, dtype=torch.bool, device=x.device)
    unexplained = 0.0
    for rows in x.split(4096):
        found = sae.encode(rows)
        fired[found.features] = True
        unexplained += float((rows - sae.decode(found, len(rows))).double().pow(2).sum())
    total = float((x - x.mean(0)).double().pow(2).sum())
    return Trained(sae, unexplained / total, float((~fired).double().mean()))

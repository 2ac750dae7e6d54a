"""An SAE in the place of an ITDA dictionary: what both are to a comparison of models."""

from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from model_diffs.core.errors import BadInput
from model_diffs.dictionaries import sae_choice, sae_sources
from model_diffs.dictionaries.options import SaeChoice
from model_diffs.dictionaries.pursuit import Codes
from model_diffs.dictionaries.sae import Features, Sae
from model_diffs.models.checkpoints import Checkpoint

PREFIX = "sae:"
_PRE_ACTIVATIONS = 1 << 24  # entries that are dense at a time: 64 MiB


class Dictionary(Protocol):
    """Latents of one layer's activations."""

    layer: int
    site: str
    size: int
    metadata: dict[str, Any]

    def encode(self, x: Tensor) -> Codes:
        """Codes of activations `[n, d]`, every latent at most once per activation."""
        ...


class SaeDictionary:
    """The SAE of one layer."""

    def __init__(self, sae: Sae, layer: int, site: str, metadata: dict[str, Any]) -> None:
        self.sae, self.layer, self.site, self.metadata = sae, layer, site, metadata
        self.size = sae.d_sae
        self.files: list[Path] = []

    @classmethod
    def open(
        cls, name: str, model: str, layer: int | None, options: SaeChoice, device: torch.device
    ) -> "SaeDictionary":
        """The SAE `name` (a folder, org/name[/folder] or release:id) of a layer of a model.

        Raises BadInput where there is none or several, and for a transcoder, which does not encode
        what it stands for.
        """
        checkpoint = Checkpoint.open(model)
        layers = None if layer is None else (layer,)
        choice = sae_choice.choose_for(name, checkpoint, layers, "auto", options)
        if len(choice.chosen) > 1:
            has = ", ".join(map(str, choice.chosen))
            raise BadInput(f"{name} has SAEs of layers {has}: choose one with --layer")
        if choice.entering:
            raise BadInput(f"{name} is a transcoder: models are compared in the features of an SAE")
        ((number, found),) = choice.chosen.items()
        found = sae_sources.fetch(found)
        sae = sae_choice.read(found, checkpoint, options.centred).to(device)
        about = {
            "sae": name,
            "checkpoint": sae_sources.describe(found),
            "format": found.format,
            "lm_name": model,
            "layer": number,
            "site": choice.site,
            "activation_dim": sae.d_in,
            "latents": sae.d_sae,
        }
        opened = cls(sae, number, choice.site, about)
        opened.files = sae_sources.files_of(found)
        return opened

    def encode(self, x: Tensor) -> Codes:
        """Features of activations `[…, d]`, flattened to `[n, d]`, as sparse codes.

        Raises BadInput where the width is not that of the SAE or a value is not finite.
        """
        if x.shape[-1] != self.sae.d_in:
            raise BadInput(
                f"activations are {x.shape[-1]} wide and the SAE is for {self.sae.d_in}: it was "
                "trained on another model"
            )
        flat = x.reshape(-1, x.shape[-1]).to(self.sae.encoder.device, torch.float32)
        if not bool(torch.isfinite(flat).all()):
            raise BadInput("activations hold NaN or Inf: try --dtype fp32")
        parts = [self._codes(part) for part in flat.split(max(1, _PRE_ACTIVATIONS // self.size))]
        width = max((part.indices.shape[1] for part in parts), default=0)
        return Codes(
            indices=torch.cat([_widened(part.indices, width) for part in parts]),
            values=torch.cat([_widened(part.values, width) for part in parts]),
            fvu=torch.cat([part.fvu for part in parts]),
        )

    def _codes(self, x: Tensor) -> Codes:
        found = self.sae.encode(x)
        indices, values = slots(found, len(x))
        error = (x - self.sae.reconstruct(x, found)).square().sum(1)
        norm = x.square().sum(1)
        return Codes(indices, values, torch.where(norm > 0, error / norm.clamp(min=1e-30), 0.0))


def slots(found: Features, tokens: int) -> tuple[Tensor, Tensor]:
    """`[tokens, k]` features and values, k the most that a token has; unused slots are 0."""
    counts = torch.bincount(found.tokens, minlength=tokens)
    width = int(counts.max()) if tokens else 0
    order = found.tokens.argsort(stable=True)
    rows = found.tokens[order]
    places = torch.arange(len(rows), device=rows.device) - (counts.cumsum(0) - counts)[rows]
    indices = torch.zeros(tokens, width, dtype=torch.int64, device=rows.device)
    values = torch.zeros(tokens, width, device=rows.device)
    indices[rows, places] = found.features[order]
    values[rows, places] = found.values[order].detach()
    return indices, values


def _widened(part: Tensor, width: int) -> Tensor:
    return torch.nn.functional.pad(part, (0, width - part.shape[1]))

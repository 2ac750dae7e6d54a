"""The small autoencoders of the miniature: planted directions are found, nothing else changes."""

from pathlib import Path

import pytest
import torch

import create_miniature
from model_diffs.dictionaries import sae_choice, sae_sources
from model_diffs.dictionaries.sae_files import SPARSIFY, read_sae, write_sparsify
from model_diffs.miniature import sae
from model_diffs.miniature.recipe import SaeRecipe

RECIPE = SaeRecipe(expansion_factor=1, k=3, steps=400, batch_size=256)


@pytest.fixture(scope="module")
def planted() -> tuple[torch.Tensor, torch.Tensor]:
    """Twenty directions in forty dimensions, and tokens that each add up two of them."""
    draw = torch.Generator().manual_seed(1)
    directions = torch.randn(20, 40, generator=draw)
    directions /= directions.norm(dim=1, keepdim=True)
    codes = torch.zeros(3000, 20)
    for row in codes:
        places = torch.randperm(20, generator=draw)[:2]
        row[places] = 1 + torch.rand(2, generator=draw)
    return directions, codes @ directions + 0.5


def test_planted_directions_are_found_and_the_same_seed_gives_the_same_sae(
    planted: tuple[torch.Tensor, torch.Tensor],
) -> None:
    directions, x = planted
    found = sae.train(x, RECIPE, seed=3)
    assert found.fvu < 0.1
    best = (directions @ found.sae.decoder.T).amax(1)
    assert float((best > 0.9).float().mean()) >= 0.8
    assert float(found.sae.decoder.norm(dim=1).sub(1).abs().max()) < 1e-5
    again = sae.train(x, RECIPE, seed=3)
    assert torch.equal(again.sae.encoder, found.sae.encoder)


def test_fit_is_the_variance_that_is_left(planted: tuple[torch.Tensor, torch.Tensor]) -> None:
    _, x = planted
    found = sae.train(x, RECIPE._replace(steps=40), seed=3)
    with torch.no_grad():
        codes = found.sae.encode(x)
        error = x - found.sae.decode(codes, len(x))
    expected = error.double().pow(2).sum() / (x - x.mean(0)).double().pow(2).sum()
    assert found.fvu == pytest.approx(float(expected), rel=1e-4)
    used = len(codes.features.unique())
    assert found.dead == pytest.approx(1 - used / found.sae.d_sae)


def test_what_is_saved_is_found_again(
    planted: tuple[torch.Tensor, torch.Tensor], tmp_path: Path
) -> None:
    found = sae.train(planted[1], RECIPE._replace(steps=5), seed=3)
    write_sparsify(tmp_path / "layers.2.mlp", found.sae, RECIPE.expansion_factor)
    choice = sae_choice.choose(str(tmp_path), sae_sources.find(str(tmp_path)), None)
    assert (choice.site, list(choice.chosen)) == ("mlp_out", [2])
    back = read_sae(tmp_path / "layers.2.mlp", SPARSIFY)
    assert torch.equal(back.decoder, found.sae.decoder)
    assert back.k == RECIPE.k


def test_autoencoders_are_planned_with_the_flag_only() -> None:
    plain = create_miniature.planned_runs(create_miniature.Options())
    assert [one.folder.name for one in plain] == [
        "miniature",
        "miniature-base",
        "miniature-filtered",
        "miniature-reseeded",
    ]
    more = create_miniature.planned_runs(create_miniature.Options(sae=True))
    assert more[:4] == plain
    assert [one.folder.name for one in more[4:]] == ["miniature-sae"]

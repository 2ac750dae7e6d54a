"""Files of ITDA dictionaries: ours and the published layout, and what is refused."""

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from model_diffs.core.errors import BadInput
from model_diffs.dictionaries import itda
from model_diffs.dictionaries.itda import ITDA

# What every published metadata.yaml holds, in its order.
PUBLISHED_KEYS = (
    *("lm_name", "layer", "submodule_name", "activation_dim", "k", "loss_threshold", "dataset"),
    *("seq_len", "batch_size", "seed", "max_dict_size", "steps"),
)


def dictionary(rows: int = 20, width: int = 8) -> ITDA:
    drawn = torch.randn(rows, width, generator=torch.Generator().manual_seed(0))
    places = torch.stack([torch.arange(rows), torch.ones(rows, dtype=torch.int64)], 1)
    metadata = dict.fromkeys(PUBLISHED_KEYS) | {"layer": 1, "k": 5, "lm_name": "org/name"}
    return ITDA(torch.nn.functional.normalize(drawn, dim=1), places, metadata)


def test_saved_dictionary_reloads_bit_for_bit(tmp_path: Path) -> None:
    saved = dictionary()
    saved.save(tmp_path)
    loaded = ITDA.from_pretrained(tmp_path, "cpu")
    assert torch.equal(loaded.atoms, saved.atoms) and loaded.atoms.dtype == torch.float32
    assert torch.equal(loaded.atom_indices, saved.atom_indices)
    assert loaded.metadata == saved.metadata and loaded.k == 5 and loaded.layer == 1
    x = torch.randn(30, 8)
    assert all(map(torch.equal, loaded.encode(x), saved.encode(x)))


def published(folder: Path, atoms: Any, indices: Any) -> Path:
    metadata = dict.fromkeys(PUBLISHED_KEYS) | {"layer": 3, "k": 40, "activation_dim": 8}
    (folder / "metadata.yaml").write_text(yaml.dump(metadata))
    torch.save(atoms, folder / "atoms.pt")
    torch.save(indices, folder / "atom_indices.pt")
    return folder


def test_published_layout_loads_with_unit_atoms(tmp_path: Path) -> None:
    ours = dictionary()
    found = ITDA.from_pretrained(published(tmp_path, ours.atoms, ours.atom_indices))
    assert torch.equal(found.atoms, ours.atoms) and found.layer == 3 and found.k == 40
    half = ITDA.from_pretrained(published(tmp_path, ours.atoms.half(), ours.atom_indices))
    assert torch.allclose(half.atoms.norm(dim=1), torch.ones(20), atol=1e-6)
    assert torch.allclose(half.atoms, ours.atoms, atol=1e-3)


class Harmful:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("harmed"),))


def test_pickle_with_more_than_tensors_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ours = dictionary()
    for content in (Harmful(), {"atoms": ours.atoms}, [ours.atoms]):
        published(tmp_path, content, ours.atom_indices)
        with pytest.raises(BadInput, match="refused"):
            ITDA.from_pretrained(tmp_path)
    published(tmp_path, ours.atoms, Harmful())
    with pytest.raises(BadInput, match=r"atom_indices\.pt.*refused"):
        ITDA.from_pretrained(tmp_path)
    (tmp_path / "atoms.pt").write_bytes(pickle.dumps(Harmful()))
    with pytest.raises(BadInput, match="refused"):
        ITDA.from_pretrained(tmp_path)
    assert not Path("harmed").exists()


def test_damaged_dictionaries_are_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no such dictionary"):
        ITDA.from_pretrained(tmp_path / "missing")
    with pytest.raises(BadInput, match=r"no metadata\.yaml"):
        ITDA.from_pretrained(tmp_path)
    (tmp_path / "layer_2").mkdir()
    dictionary().save(tmp_path / "layer_2")
    with pytest.raises(BadInput, match="such as layer_2"):
        ITDA.from_pretrained(tmp_path)
    (tmp_path / "layer_2" / "atoms.safetensors").write_bytes(b"nothing")
    with pytest.raises(BadInput, match="damaged"):
        ITDA.from_pretrained(tmp_path / "layer_2")
    (tmp_path / "layer_2" / "atoms.safetensors").unlink()
    with pytest.raises(BadInput, match="no atoms"):
        ITDA.from_pretrained(tmp_path / "layer_2")
    for wrong in ("layer: -1", "layer: x", "layer: 2\nk: 0", "layer: 2\nskip_first: -1"):
        (tmp_path / "layer_2" / "metadata.yaml").write_text(wrong)
        with pytest.raises(BadInput, match="a whole number from"):
            ITDA.from_pretrained(tmp_path / "layer_2")
    (tmp_path / "layer_2" / "metadata.yaml").write_text("a: [")
    with pytest.raises(BadInput, match="not valid YAML"):
        ITDA.from_pretrained(tmp_path / "layer_2")
    with pytest.raises(BadInput, match="of norm 1"):
        ITDA.from_pretrained(
            published(tmp_path, torch.full((20, 8), torch.nan), dictionary().atom_indices)
        )
    with pytest.raises(BadInput, match=r"3 wide.*8"):
        dictionary().encode(torch.ones(2, 3))


def test_jaccard_counts_atoms_found_at_the_same_places() -> None:
    a, b = dictionary(20), dictionary(30)
    assert itda.jaccard(a, a) == 1.0
    assert itda.jaccard(a, b) == itda.jaccard(b, a) == 20 / 30
    b.atom_indices[:, 1] += 1
    assert itda.jaccard(a, b) == 0.0


def test_activations_of_any_shape_and_precision_are_encoded() -> None:
    found, x = dictionary(), torch.randn(3, 10, 8, generator=torch.Generator().manual_seed(1))
    flat = found.encode(x.view(30, 8))
    for given in (x, x.double(), x.transpose(0, 1).contiguous().transpose(0, 1)):
        codes = found.encode(given)
        assert all(map(torch.equal, codes, flat)) and codes.values.dtype == torch.float32
    rebuilt = found.decode(flat)
    expected = torch.zeros(30, 8)
    for row, (indices, values) in enumerate(zip(flat.indices, flat.values, strict=True)):
        for j, value in zip(indices, values, strict=True):
            expected[row] += value * found.atoms[j]
    torch.testing.assert_close(rebuilt, expected)
    for bad in (torch.nan, torch.inf):
        with pytest.raises(BadInput, match="NaN or Inf"):
            found.encode(x.masked_fill(x > 2, bad))


def test_least_numbers_of_the_metadata_are_taken(tmp_path: Path) -> None:
    ours = dictionary()
    for metadata, k in (({"layer": 0, "k": 1, "skip_first": 0}, 1), ({"layer": 0}, 40)):
        ITDA(ours.atoms, ours.atom_indices, metadata).save(tmp_path)
        loaded = ITDA.from_pretrained(tmp_path)
        assert (loaded.layer, loaded.k, loaded.metadata) == (0, k, metadata)
    assert (loaded.size, loaded.activation_dim) == (20, 8)
    (tmp_path / "metadata.yaml").write_text("layer: 0\nk: null\n")
    assert ITDA.from_pretrained(tmp_path).k == 40
    assert {file.name for file in itda.files_of(tmp_path)} == {"atoms.safetensors", "metadata.yaml"}


@pytest.mark.parametrize("text", ["[1, 2]", "k: 5", "layer: null", ""])
def test_metadata_without_a_layer_are_refused(text: str, tmp_path: Path) -> None:
    dictionary().save(tmp_path)
    (tmp_path / "metadata.yaml").write_text(text)
    with pytest.raises(BadInput, match="does not say which layer"):
        ITDA.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("atoms", "indices"),
    [((20, 8), (20, 3)), ((20, 8), (19, 2)), ((20,), (20, 2)), ((0, 8), (0, 2))],
)
def test_atoms_and_their_places_have_the_same_rows(
    atoms: tuple[int, ...], indices: tuple[int, ...], tmp_path: Path
) -> None:
    given = torch.full(atoms, 8**-0.5), torch.zeros(indices, dtype=torch.int64)
    published(tmp_path, *given)
    with pytest.raises(BadInput, match=r"\[n, d\] and \[n, 2\] are expected"):
        ITDA.from_pretrained(tmp_path)


def test_published_atoms_are_scaled_and_ours_are_not(tmp_path: Path) -> None:
    ours = dictionary()
    found = ITDA.from_pretrained(published(tmp_path, 1.5 * ours.atoms, ours.atom_indices))
    torch.testing.assert_close(found.atoms, ours.atoms)
    ITDA(1.5 * ours.atoms, ours.atom_indices, {"layer": 0}).save(tmp_path)
    with pytest.raises(BadInput, match="not of norm 1"):
        ITDA.from_pretrained(tmp_path)

"""ITDA: a dictionary whose atoms are real activations, encoded by matching pursuit.

Leask, Nanda & Al Moubayed, "Inference-Time Decomposition of Activations", ICML 2025. No bias, no
centring: x ≈ Σ coefficient · atom.

    itda = ITDA.from_pretrained("artifacts/runs/one", "cpu")
    codes = itda.encode(x)
    x_hat = itda.decode(codes)

A folder holds `atoms.safetensors` and `metadata.yaml`; one in the published layout holds
`atoms.pt`, `atom_indices.pt` and `metadata.yaml`.
"""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor

from model_diffs.core.errors import BadInput
from model_diffs.dictionaries import pursuit
from model_diffs.dictionaries.pursuit import Codes
from model_diffs.dictionaries.tensor_files import load_tensors

TENSORS, METADATA = "atoms.safetensors", "metadata.yaml"
PUBLISHED = {"atoms": "atoms.pt", "atom_indices": "atom_indices.pt"}
"""Tensors of the published layout: a file each."""
DEFAULT_K = 40
# Numbers of metadata.yaml that decide an encoding, and the least that each can be.
_LEAST = {"layer": 0, "k": 1, "skip_first": 0}


class ITDA:
    """Atoms, where each was found, and what they were made from."""

    site = "resid_post"

    def __init__(self, atoms: Tensor, atom_indices: Tensor, metadata: Mapping[str, Any]) -> None:
        """`atoms` `[n, d]` fp32 unit rows; `atom_indices` `[n, 2]` sequence and position.

        `layer` is the number of the block whose output is encoded, from 0; `k` are the steps of the
        pursuit.
        """
        self.atoms, self.atom_indices, self.metadata = atoms, atom_indices, dict(metadata)
        self.size, self.activation_dim = atoms.shape
        self.layer, self.k = int(metadata["layer"]), int(metadata.get("k", DEFAULT_K))

    @cached_property
    def _gram(self) -> Tensor | None:
        return pursuit.gram_of(self.atoms)

    def encode(self, x: Tensor) -> Codes:
        """Sparse codes of activations `[…, d]`, flattened to `[n, d]`.

        Raises BadInput where the width is not that of the atoms or a value is not finite.
        """
        if x.shape[-1] != self.activation_dim:
            raise BadInput(
                f"activations are {x.shape[-1]} wide and the dictionary's atoms "
                f"{self.activation_dim}: it was trained on another model, "
                f"{self.metadata.get('lm_name')}"
            )
        flat = x.reshape(-1, x.shape[-1]).to(self.atoms.device, torch.float32)
        if not bool(torch.isfinite(flat).all()):
            raise BadInput("activations hold NaN or Inf: try --dtype fp32")
        codes = pursuit.matching_pursuit(flat.contiguous(), self.atoms, self.k, self._gram)
        return pursuit.merged(codes)

    def decode(self, codes: Codes) -> Tensor:
        """Reconstructions `[n, d]`."""
        return pursuit.decode(codes, self.atoms)

    def save(self, folder: Path) -> None:
        """Write `atoms.safetensors` and `metadata.yaml` into an existing folder."""
        tensors = {"atoms": self.atoms.cpu().contiguous(), "atom_indices": self.atom_indices}
        save_file(tensors, folder / TENSORS)
        text = yaml.safe_dump(self.metadata, sort_keys=False, allow_unicode=True)
        (folder / METADATA).write_text(text, encoding="utf-8")

    @classmethod
    def from_pretrained(cls, path: str | Path, device: torch.device | str = "cpu") -> "ITDA":
        """Open a dictionary's folder, ours or one in the published layout.

        Raises BadInput where there is none, it is damaged, or a file holds more than tensors.
        """
        folder = Path(path).expanduser()
        metadata = _metadata(folder)
        published = not (folder / TENSORS).is_file()
        if published and not (folder / PUBLISHED["atoms"]).is_file():
            raise BadInput(
                f"{folder}: no atoms; looked for {TENSORS} and {PUBLISHED['atoms']}. "
                "Train it again with train_itda.py"
            )
        try:
            if published:
                found = {name: load_tensors(folder / file)[""] for name, file in PUBLISHED.items()}
            else:
                found = load_tensors(folder / TENSORS)
            atoms, indices = found["atoms"].float(), found["atom_indices"].long()
        except KeyError as error:
            raise BadInput(f"{folder}: no {' and '.join(PUBLISHED)} in it: refused") from error
        if atoms.ndim != 2 or not len(atoms) or indices.shape != (len(atoms), 2):
            raise BadInput(
                f"{folder}: atoms are {list(atoms.shape)} and their indices {list(indices.shape)}; "
                "[n, d] and [n, 2] are expected"
            )
        if metadata.get("activation_dim") not in (None, atoms.shape[1]):
            raise BadInput(
                f"{folder}: atoms are {atoms.shape[1]} wide, its {METADATA} says "
                f"{metadata['activation_dim']}"
            )
        norms = torch.linalg.vector_norm(atoms, dim=1, keepdim=True)
        if published and bool(((norms - 1).abs() > 1e-6).any()):
            atoms, norms = atoms / norms, norms / norms  # saved in half precision, perhaps
        if not bool(((norms - 1).abs() < 1e-3).all()):  # NaN fails this too
            raise BadInput(f"{folder}: atoms are not finite or not of norm 1; train it again")
        return cls(atoms.to(device), indices, metadata)


def files_of(folder: str | Path) -> list[Path]:
    """The files of a dictionary that decide what it encodes."""
    names = (TENSORS, METADATA, *PUBLISHED.values())
    return [file for file in (Path(folder).expanduser() / name for name in names) if file.is_file()]


def jaccard(a: ITDA, b: ITDA) -> float:
    """|A ∩ B| / |A ∪ B| of the sets of (sequence, position) that became atoms (Leask et al., 2025).

    It says how alike two models' representations are where both dictionaries read the same data.
    """
    sets = [set(map(tuple, one.atom_indices.tolist())) for one in (a, b)]
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def _metadata(folder: Path) -> dict[str, Any]:
    path = folder / METADATA
    if not folder.is_dir():
        raise BadInput(f"{folder}: no such dictionary; train one with train_itda.py")
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        inside = sorted(file.parent.name for file in folder.glob(f"*/{METADATA}"))
        hint = f"name one of the folders in it, such as {inside[0]}" if inside else "train it again"
        raise BadInput(f"{folder}: no {METADATA}, so no dictionary; {hint}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise BadInput(f"{path} is not valid YAML: copy the dictionary again") from error
    if not isinstance(found, dict) or found.get("layer") is None:
        raise BadInput(f"{path} does not say which layer; looked for a number under 'layer'")
    for key, least in _LEAST.items():
        value = found.get(key)
        if value is None:
            found.pop(key, None)
        elif not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise BadInput(f"{path}: {key} is {value!r}; a whole number from {least} is expected")
    return found

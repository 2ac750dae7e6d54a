"""Ways to damage an input of the study in the working folder: weights, configurations, texts.

Each gives a function that does it once it is called.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tiny_models
import torch
from safetensors.torch import load_file, save_file

NORM = "gpt_neox.final_layer_norm.weight"
MLP = "gpt_neox.layers.1.mlp.dense_h_to_4h.weight"
QUESTION = {"id": "q", "domain": "general", "entity": "e", "relation": "r", "prompt": "What is",
            "fold": "heldout", "choices": ["this?", "that?", "these?", "those?"],
            "answer": 1}  # fmt: skip
PER_LAYER = "layer,group,dW_fro_layer_rel,mean_dW_stable_rank,max_dW_spectral_rel\n"


def nothing() -> None:
    pass


def weight(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[], None]:
    def damage() -> None:
        tensors = load_file("b/model.safetensors")
        tensors[name] = change(tensors[name])
        save_file(tensors, "b/model.safetensors", metadata={"format": "pt"})

    return damage


def stored_as(dtype: torch.dtype) -> Callable[[], None]:
    return weight(MLP, lambda tensor: tensor.to(dtype))


def with_nan(tensor: torch.Tensor) -> torch.Tensor:
    tensor.view(-1)[3] = float("nan")
    return tensor


def without_a_weight() -> None:
    tensors = load_file("b/model.safetensors")
    del tensors[MLP]
    save_file(tensors, "b/model.safetensors", metadata={"format": "pt"})


def config(**changed: Any) -> Callable[[], None]:
    def damage() -> None:
        found = json.loads(Path("b/config.json").read_text())
        Path("b/config.json").write_text(json.dumps(found | changed))

    return damage


def file(name: str, content: str | bytes) -> Callable[[], object]:
    data = content.encode() if isinstance(content, str) else content
    return lambda: Path(name).write_bytes(data)


def loop(name: str) -> Callable[[], object]:
    def damage() -> None:
        Path(name).unlink()
        Path(name).symlink_to(Path(name).name)

    return damage


def question(**changed: Any) -> Callable[[], object]:
    return file("questions.jsonl", "\n" + json.dumps(QUESTION | changed))


def index(content: Any) -> Callable[[], None]:
    def damage() -> None:
        Path("b/model.safetensors").rename("b/model-00001-of-00001.safetensors")
        Path("b/model.safetensors.index.json").write_text(json.dumps(content))

    return damage


def as_bin(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[], None]:
    def damage() -> None:
        torch.save(change(load_file("b/model.safetensors")), "b/pytorch_model.bin")
        Path("b/model.safetensors").unlink()

    return damage


def few_positions(family: str) -> Callable[[], None]:
    """Both models, anew, with fewer positions than the texts have tokens."""

    def damage() -> None:
        key = "n_positions" if family == "gpt2" else "max_position_embeddings"
        for side, seed in (("a", 0), ("b", 1)):
            shutil.rmtree(side)
            tiny_models.save(family, Path(side), seed=seed, **{key: 16})

    return damage


def gibberish_table(cell: str) -> Callable[[], object]:
    return file("per_layer.csv", f"{PER_LAYER}0,mlp,0.1,1.5,0.3\n1,mlp,{cell},1.5,0.3\n")

"""Tiny SAEs in the layouts in which they are published, one function per format.

Each writes below a folder, as its repository has them, and gives the tensors that it wrote.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

D, L, K = 32, 96, 6
Tensors = dict[str, torch.Tensor]


def tensors(seed: int, d_in: int = D, d_out: int = D) -> Tensors:
    """Encoder `[L, d_in]`, decoder `[L, d_out]` with rows of norm 1, biases, thresholds."""
    draw = torch.Generator().manual_seed(seed)
    decoder = torch.randn(L, d_out, generator=draw)
    return {
        "encoder": torch.randn(L, d_in, generator=draw),
        "decoder": decoder / decoder.norm(dim=1, keepdim=True),
        "b_enc": 0.1 * torch.randn(L, generator=draw),
        "b_dec": 0.1 * torch.randn(d_out, generator=draw),
        "threshold": torch.rand(L, generator=draw),
    }


def _config(folder: Path, name: str, config: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(config))


def gemma_scope(folder: Path, seed: int, **sizes: int) -> Tensors:
    """`layer_1/width_16k/average_l0_71/params.npz`."""
    w = tensors(seed, **sizes)
    folder.mkdir(parents=True)
    arrays = {"W_enc": w["encoder"].T, "W_dec": w["decoder"]}
    arrays |= {name: w[name] for name in ("b_enc", "b_dec", "threshold")}
    np.savez(folder / "params.npz", **{name: one.numpy() for name, one in arrays.items()})
    return w


def gemma_scope_2(folder: Path, seed: int, out: str | None = None, **sizes: int) -> Tensors:
    """`resid_post/layer_1_width_16k_l0_small/{config.json, params.safetensors}`."""
    w = tensors(seed, **sizes)
    config = {"architecture": "jump_relu", "model_name": "gemma-v3-1b-pt"}
    config |= {"hf_hook_point_in": "…", **({"hf_hook_point_out": out} if out else {})}
    _config(folder, "config.json", config)
    stored = {"w_enc": w["encoder"].T.contiguous(), "w_dec": w["decoder"]}
    stored |= {name: w[name] for name in ("b_enc", "b_dec", "threshold")}
    save_file(stored, folder / "params.safetensors")
    return w


def llama_scope(
    folder: Path, seed: int, read: str, stands: str, norms: tuple[float, float], limit: float
) -> Tensors:
    """`Llama3_1-8B-Base-L1M-8x/{hyperparams.json, checkpoints/final.safetensors}`."""
    w = tensors(seed)
    config = {"hook_point_in": read, "hook_point_out": stands, "d_model": D, "d_sae": L}
    config |= {"act_fn": "jumprelu", "jump_relu_threshold": limit, "use_decoder_bias": True}
    config |= {"norm_activation": "dataset-wise", "sparsity_include_decoder_norm": True}
    config |= {"dataset_average_activation_norm": {"in": norms[0], "out": norms[1]}}
    config |= {"apply_decoder_bias_to_pre_encoder": False, "top_k": 50, "expansion_factor": 3}
    _config(folder, "hyperparams.json", config)
    (folder / "checkpoints").mkdir()
    stored = {"encoder.weight": w["encoder"], "encoder.bias": w["b_enc"]}
    stored |= {"decoder.weight": w["decoder"].T.contiguous(), "decoder.bias": w["b_dec"]}
    save_file(stored, folder / "checkpoints" / "final.safetensors")
    return w


def sparsify(folder: Path, seed: int, **config: Any) -> Tensors:
    """`layers.1.mlp/{cfg.json, sae.safetensors}`."""
    w = tensors(seed)
    told = {"activation": "topk", "expansion_factor": 3, "num_latents": L, "k": K, "d_in": D}
    _config(folder, "cfg.json", {**told, "normalize_decoder": True, "transcode": False, **config})
    stored = {"encoder.weight": w["encoder"], "encoder.bias": w["b_enc"]}
    save_file({**stored, "W_dec": w["decoder"], "b_dec": w["b_dec"]}, folder / "sae.safetensors")
    return w


def saelens(folder: Path, seed: int, d_in: int = D, **config: Any) -> Tensors:
    """`blocks.1.hook_mlp_out/{cfg.json, sae_weights.safetensors}`."""
    w = tensors(seed, d_in, d_in)
    told = {"architecture": "jumprelu", "d_in": d_in, "d_sae": L, "apply_b_dec_to_input": False}
    _config(folder, "cfg.json", {**told, "normalize_activations": "none", **config})
    stored = {"W_enc": w["encoder"].T.contiguous(), "W_dec": w["decoder"]}
    stored |= {name: w[name] for name in ("b_enc", "b_dec")}
    if {**told, **config}["architecture"].startswith("jumprelu"):
        stored["threshold"] = w["threshold"]
    save_file(stored, folder / "sae_weights.safetensors")
    return w


def dictionary_learning(folder: Path, seed: int, layer: int, submodule: str) -> Tensors:
    """`resid_post_layer_1/trainer_0/{config.json, ae.pt}`, a BatchTopK SAE."""
    w = tensors(seed)
    trainer = {"dict_class": "BatchTopKSAE", "activation_dim": D, "dict_size": L, "k": K}
    trainer |= {"layer": layer, "submodule_name": submodule, "lm_name": "tiny"}
    _config(folder, "config.json", {"trainer": trainer, "buffer": {"ctx_len": 64}})
    stored = {"encoder.weight": w["encoder"], "encoder.bias": w["b_enc"]}
    stored |= {"decoder.weight": w["decoder"].T.contiguous(), "b_dec": w["b_dec"]}
    stored |= {"k": torch.tensor(K), "threshold": torch.tensor(0.7)}
    torch.save(stored, folder / "ae.pt")
    return w

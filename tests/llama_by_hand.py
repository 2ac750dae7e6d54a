"""A Llama forward pass written by hand on the tensors of a GGUF file, as `gguf` dequantises them.

Independent of transformers: names, layout and the pairing of rotary dimensions (neighbours) are
those of the file format, not those that transformers converts to.
"""

from pathlib import Path
from typing import Any

import numpy as np

PROMPTS = (
    "The capital of Kenya is",
    "The capital of France is",
    "Water boils at",
    "Question: who wrote Hamlet?\nAnswer:",
    "1 + 1 =",
    "Once upon a time",
    "def main():",
    "The sun rises in the",
    "A, B, C,",
    "é, ü and ß",
)


class ByHand:
    """The model in a GGUF file, in fp64."""

    def __init__(self, file: Path) -> None:
        import gguf

        read = gguf.GGUFReader(file)
        self.tensors = {
            one.name: gguf.dequantize(one.data, one.tensor_type).astype(np.float64)
            for one in read.tensors
        }

        def setting(name: str) -> Any:
            return read.fields[f"llama.{name}"].contents()

        self.blocks = int(setting("block_count"))
        self.heads = int(setting("attention.head_count"))
        self.groups = int(setting("attention.head_count_kv"))
        self.base = float(setting("rope.freq_base"))
        self.epsilon = float(setting("attention.layer_norm_rms_epsilon"))

    def _norm(self, x: np.ndarray, name: str) -> np.ndarray:
        scale = 1 / np.sqrt((x * x).mean(-1, keepdims=True) + self.epsilon)
        return x * scale * self.tensors[name + ".weight"]

    def _rotate(self, x: np.ndarray) -> np.ndarray:
        """Turn each pair of neighbouring dimensions of `[positions, heads, d]` by its angle."""
        d = x.shape[-1]
        angle = np.outer(np.arange(len(x)), self.base ** (-np.arange(0, d, 2) / d))[:, None]
        even, odd = x[..., 0::2], x[..., 1::2]
        out = np.empty_like(x)
        out[..., 0::2] = even * np.cos(angle) - odd * np.sin(angle)
        out[..., 1::2] = even * np.sin(angle) + odd * np.cos(angle)
        return out

    def _attention(self, x: np.ndarray, block: str) -> np.ndarray:
        n, w = len(x), self.tensors
        d = w[block + "attn_q.weight"].shape[0] // self.heads
        q = self._rotate((x @ w[block + "attn_q.weight"].T).reshape(n, self.heads, d))
        k = self._rotate((x @ w[block + "attn_k.weight"].T).reshape(n, self.groups, d))
        v = (x @ w[block + "attn_v.weight"].T).reshape(n, self.groups, d)
        k, v = (np.repeat(one, self.heads // self.groups, axis=1) for one in (k, v))
        scores = np.einsum("ihd,jhd->hij", q, k) / np.sqrt(d)
        scores = np.where(np.tri(n, dtype=bool), scores, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        return (
            np.einsum("hij,jhd->ihd", weights, v).reshape(n, -1) @ w[block + "attn_output.weight"].T
        )

    def logits(self, ids: list[int]) -> np.ndarray:
        """`[positions, vocabulary]`"""
        w = self.tensors
        h = w["token_embd.weight"][ids]
        for number in range(self.blocks):
            block = f"blk.{number}."
            h = h + self._attention(self._norm(h, block + "attn_norm"), block)
            x = self._norm(h, block + "ffn_norm")
            gate = x @ w[block + "ffn_gate.weight"].T
            up = x @ w[block + "ffn_up.weight"].T
            h = h + (gate / (1 + np.exp(-gate)) * up) @ w[block + "ffn_down.weight"].T
        head = w.get("output.weight", w["token_embd.weight"])
        return self._norm(h, "output_norm") @ head.T


def largest_difference(file: Path, folder: Path) -> tuple[float, float]:
    """Between the logits of the folder's model and of the pass by hand; and their spread."""
    import torch

    from model_diffs.models import loading

    tokenizer = loading.load_tokenizer(str(folder))
    model = loading.load_model(str(folder), torch.device("cpu"), torch.float32)
    by_hand, differences, spreads = ByHand(file), [], []
    for prompt in PROMPTS:
        ids = tokenizer(prompt)["input_ids"]
        with torch.inference_mode():
            found = model(torch.tensor([ids])).logits[0].double().numpy()
        expected = by_hand.logits(ids)
        differences.append(np.abs(found - expected).max())
        spreads.append(expected.std())
    return max(differences), min(spreads)

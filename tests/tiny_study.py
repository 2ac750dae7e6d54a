"""Two tiny models and two splits of unequal texts, and scripts run on them as from a shell.

study = tiny_study.make(tmp_path)
study.run("linear_probe_analysis.py", "--model", study.model_a)
"""

import json
import random
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import tiny_models

from model_diffs.core import script as scripts
from model_diffs.core.step import load_script
from model_diffs.models.anatomy import locate

ROOT = Path(__file__).parents[1]
WORDS = {
    "forget": ["virus", "flask", "agent", "dose", "vector", "carrier", "spore", "antidote"],
    "retain": ["river", "loom", "weaver", "bread", "salt", "ferry", "dawn", "mill"],
}


def texts(split: str, count: int) -> list[str]:
    """Lines of 1 to 12 words, mostly of the split's own."""
    draw = random.Random(split)
    other = WORDS["retain" if split == "forget" else "forget"]
    return [
        " ".join(
            draw.choice(WORDS[split] if draw.random() < 0.7 else other)
            for _ in range(draw.randint(1, 12))
        )
        + f" {i}."
        for i in range(count)
    ]


class Study(NamedTuple):
    """Where everything lies."""

    root: Path
    model_a: str
    model_b: str

    def text_options(self) -> list[str]:
        return [
            *("--forget-text", str(self.root / "forget.txt")),
            *("--retain-text", str(self.root / "retain.txt")),
            *("--outroot", str(self.root / "outputs"), "--device", "cpu", "--batch-size", "7"),
        ]

    def run(self, script: str, *arguments: str) -> None:
        """Run a script's main with these arguments and those of the texts, in this process."""
        module = load_script(ROOT / script)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", [script, *self.text_options(), *arguments])
            if hasattr(module, "STEP"):
                scripts.execute(module)
            else:
                module.main()

    def compare(self, script: str, *arguments: str, b: str | None = None) -> None:
        """Run a step that compares both models."""
        self.run(script, "--model-a", self.model_a, "--model-b", b or self.model_b, *arguments)


def make(root: Path, family: str = "gpt_neox") -> Study:
    """Save models `base` and `base__rmu`, 21 forget and 24 retain texts under `root`."""
    for name, count in (("forget", 21), ("retain", 24)):
        (root / f"{name}.txt").write_text("\n".join(texts(name, count)) + "\n")
    a, b = (
        str(tiny_models.save(family, root / name, seed=seed))
        for seed, name in enumerate(("base", "base__rmu"))
    )
    return Study(root, a, b)


def last_block(model: Any) -> list[Any]:
    """Grows by the output of the last block, `[texts, positions, d]`, of each pass."""
    outputs: list[Any] = []

    def keep(module: Any, args: Any, output: Any) -> None:
        outputs.append(output[0] if isinstance(output, tuple) else output)

    locate(model).blocks[-1].register_forward_hook(keep)
    return outputs


def states(model: str, split: str, residual: bool = False) -> list[Any]:
    """transformers' own hidden states `[S, positions, d]` of each text, one by one, in fp64.

    With `residual` the last is the output of the last block, without the final norm.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    outputs, found = last_block(loaded), []
    count = {"forget": 21, "retain": 24}[split]
    for text in texts(split, count):
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        with torch.no_grad():
            hidden = loaded(ids, output_hidden_states=True).hidden_states
        every = [*hidden[:-1], outputs[-1]] if residual else hidden
        found.append(torch.stack([*every])[:, 0].double().numpy())
    return found


def questions(path: Path, count: int = 30) -> Path:
    """Four-choice questions of unequal lengths."""
    draw = random.Random(0)
    lines = []
    for i in range(count):
        fields = {"entity": "e", "relation": "r", "fold": None, "answer": i % 4}
        fields |= {"id": f"q{i}", "domain": ("general", "hazard")[i % 2]}
        fields |= {"prompt": "What stands " + "by the mill " * (i % 3) + "?"}
        fields["choices"] = draw.sample(WORDS["retain"], 4)
        lines.append(json.dumps(fields))
    path.write_text("\n".join(lines))
    return path

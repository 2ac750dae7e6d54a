"""The importance commands of docs/commands.md run to their end, as typed.

The models and the data set that they name are tiny ones on a hub of this machine; the SAEs lie in
the working folder, where the source documents have them.
"""

import shlex
from collections.abc import Iterator
from pathlib import Path

import field_saes
import pyarrow as pa
import pytest
import test_commands
import test_importance_scripts
import tiny_models
import torch
from loopback_hub import LoopbackHub, use
from pyarrow import parquet

from model_diffs.importance.saved import load_results

SAES, ACTIVATIONS, _ = test_commands.blocks(test_commands.PAGE)
LAYERS = {"Qwen/Qwen2.5-0.5B": 24, "meta-llama/Llama-3.1-8B": 32}
LAYERS |= {"mistralai/Mistral-7B-v0.1": 32, "google/gemma-2-2b": 26}
FAMILIES = dict(zip(LAYERS, ("qwen2", "llama", "mistral", "gemma2"), strict=True))
CARD = """---
configs:
- config_name: wikitext-2-raw-v1
  data_files: [{split: train, path: wikitext-2-raw-v1/train-*}]
---
"""


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoopbackHub]:
    place = tmp_path_factory.mktemp("named")
    with LoopbackHub() as hub:
        for name, family in FAMILIES.items():
            sizes = {"num_hidden_layers": LAYERS[name]}
            hub.put(name, tiny_models.save(family, place / family, **sizes))
        lines = [f" {i} weavers kept a ledger of bread , salt and slow water .\n" for i in range(8)]
        parquet.write_table(pa.table({"text": lines}), place / "train.parquet")
        data = {"README.md": CARD.encode()}
        data["wikitext-2-raw-v1/train-00000-of-00001.parquet"] = (
            place / "train.parquet"
        ).read_bytes()
        hub.put("Salesforce/wikitext", data, kind="datasets")
        yield hub


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SAE of every layer's MLP."""
    place = tmp_path_factory.mktemp("demo")
    for layer in range(LAYERS["Qwen/Qwen2.5-0.5B"]):
        name = f"mlp_out_layer_{layer}"
        below = "dictionary_learning_demo/Qwen_Qwen2.5-0.5B_batch_top_k"
        field_saes.dictionary_learning(place / below / name / "trainer_0", layer, layer, name)
    return place


@pytest.mark.parametrize("line", [*SAES, *ACTIVATIONS])
def test_command_runs_as_typed(
    line: str, hub: LoopbackHub, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(hub, monkeypatch, trained / "cache")
    monkeypatch.chdir(trained)
    monkeypatch.setattr("model_diffs.importance.running.figures", lambda *_: ())
    _, path, *words = shlex.split(line)
    words = [word.replace("/path/to", str(tmp_path)) for word in words]
    if "cuda" in words and not torch.cuda.is_available():
        words[words.index("cuda")] = "cpu"
    assert test_importance_scripts.run(
        Path(path).stem, [*words, "--outroot", str(tmp_path)], monkeypatch
    ) == 0  # fmt: skip
    folders = [*(tmp_path / "importance").iterdir()]
    powers = words[words.index("--power") + 1] if "--power" in words else "1"
    assert len(folders) == len(powers.split(","))
    width = field_saes.L if line in SAES else tiny_models.HIDDEN
    for folder in folders:
        for values in load_results(folder)["data"].values():
            assert values.shape == (width,) and values.any()
    assert (tmp_path / "my_results.npz").exists() == ("my_results" in line)

"""Two models in the features of an SAE; fine-tunes whose tokenizers are not quite the base's."""

import json
import shutil
from pathlib import Path
from typing import Any

import field_saes
import numpy as np
import pandas as pd
import pytest
import test_sae
import tiny_models
import tiny_study
import torch
from itda_study import LAYER, diffing, edited, files, make

import diff
from model_diffs.core.errors import BadInput
from model_diffs.core.script import execute
from model_diffs.dictionaries import sae_dictionary
from model_diffs.dictionaries.sae import Sae
from model_diffs.dictionaries.sae_dictionary import SaeDictionary


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> tiny_study.Study:
    made = make(tmp_path_factory.mktemp("sae"))
    field_saes.saelens(made.root / "sae" / "post", 1, hook_name=f"blocks.{LAYER}.hook_resid_post",
                       model_from_pretrained_kwargs={"center_writing_weights": False})  # fmt: skip
    return made


@pytest.mark.parametrize("entries", [1, 1 << 24])
@pytest.mark.parametrize("activation", ["topk", "relu", "jumprelu"])
def test_codes_are_the_features_and_their_fit(
    activation: str, entries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sae_dictionary, "_PRE_ACTIVATIONS", entries)
    w, x = test_sae.weights(), test_sae.X
    parts = [w[name] for name in ("encoder", "encoder_bias", "decoder", "decoder_bias")]
    sae = Sae(*parts, activation, subtract=True, k=test_sae.K, threshold=w["threshold"])
    codes = SaeDictionary(sae, 0, "mlp_out", {}).encode(x)
    found = sae.encode(x)
    dense = torch.zeros(len(x), sae.d_sae).scatter_add_(1, codes.indices, codes.values)
    torch.testing.assert_close(dense, test_sae.dense(found, len(x)), rtol=1e-5, atol=1e-6)
    used = (codes.values != 0).sum(1)
    torch.testing.assert_close(used, (dense != 0).sum(1))
    error = (x - sae.decode(found, len(x))).square().sum(1) / x.square().sum(1)
    torch.testing.assert_close(codes.fvu, error, rtol=1e-4, atol=1e-6)
    with pytest.raises(BadInput, match="48 wide and the SAE is for 32"):
        SaeDictionary(sae, 0, "mlp_out", {}).encode(torch.zeros(1, 48))


def words(study: tiny_study.Study, model: str, *more: str) -> list[str]:
    return [
        *("--model-a", study.model_a, "--model-b", model, "--device", "cpu", "--batch-size", "7"),
        *("--outroot", str(study.root / "outputs"), "--dataset", *files(study), *more),
    ]


def test_models_are_compared_in_the_features_of_an_sae(study: tiny_study.Study) -> None:
    sae = "sae:" + str(study.root / "sae")
    execute(diff, words(study, study.model_b, "--dictionary", sae))
    folder = study.root / "outputs" / "base__to__base__rmu" / "itda_diffing"
    table = pd.read_csv(folder / "latents.csv").set_index("latent")
    w = field_saes.tensors(1)
    means = []
    for model in (study.model_a, study.model_b):
        states = [s for split in ("forget", "retain") for s in tiny_study.states(model, split)]
        x = torch.from_numpy(np.concatenate([one[LAYER + 1] for one in states])).float()
        pre = x @ w["encoder"].T + w["b_enc"]
        means.append((pre * (pre > w["threshold"])).double().mean(0).numpy())
    expected = pd.Series(means[1] - means[0]).loc[table.index]
    assert np.allclose(table["difference"], expected, rtol=1e-4, atol=1e-5)
    assert np.allclose(table["mean_a"], means[0][table.index], rtol=1e-4, atol=1e-5)
    record = json.loads((folder / "run.json").read_text())
    assert record["dictionary"]["site"] == "resid_post"
    assert any("sae_weights" in one["path"] for one in record["inputs"])
    with pytest.raises(BadInput, match="give one of them"):
        execute(diff, words(study, study.model_b, "--dictionary", sae, "--itda", "x"))


def test_transcoders_and_several_layers_are_refused(study: tiny_study.Study) -> None:
    field_saes.sparsify(study.root / "two" / "layers.1", 2)
    field_saes.sparsify(study.root / "two" / "layers.2", 2)
    field_saes.sparsify(study.root / "across" / "layers.1.mlp", 2, transcode=True)
    for name, message in (("two", "layers 1, 2: choose one with --layer"), ("across", "transcode")):
        sae = f"sae:{study.root / name}"
        with pytest.raises(BadInput, match=message):
            execute(diff, words(study, study.model_b, "--dictionary", sae, "--force"))


# ── tokenizers of fine-tunes ──────────────────────────────────────────────────────────────────────


def with_token(study: tiny_study.Study, name: str, token: str) -> str:
    """A copy of model B with one more token, and so a larger vocabulary."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = study.root / name
    model = AutoModelForCausalLM.from_pretrained(study.model_b)
    tokenizer = AutoTokenizer.from_pretrained(study.model_a)
    tokenizer.add_tokens([token])
    model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def change(study: tiny_study.Study, model: str, **options: Any) -> np.ndarray:
    opened = diffing(study, **options)
    texts = opened.read(files(study))
    (found,) = opened.compare(study.model_a, [model], texts)
    return found.changes["difference"].to_numpy()


def test_fine_tunes_with_an_added_token_or_without_a_tokenizer_are_diffed(
    study: tiny_study.Study, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = change(study, study.model_b)
    assert capsys.readouterr().err == ""
    padded = with_token(study, "padded", "<|pad|>")
    assert np.allclose(change(study, padded), expected, atol=1e-6)
    assert "added 1 tokens, none of which the texts use" in capsys.readouterr().err
    bare = Path(shutil.copytree(study.model_b, study.root / "bare"))
    for file in bare.glob("*token*"):
        file.unlink()
    assert np.allclose(change(study, str(bare)), expected, atol=1e-6)
    assert "no tokenizer of its own" in capsys.readouterr().err


def test_a_tokenizer_that_reads_the_texts_otherwise_is_refused(study: tiny_study.Study) -> None:
    begins = Path(files(study)[0]).read_text()[:4]
    with pytest.raises(BadInput, match="read the texts as different tokens: pass --tokenizer"):
        change(study, with_token(study, "words", begins))
    other = edited(study, "other", lambda _: None)
    tiny_models.tokenizer("llama").save_pretrained(other)
    known = {**tiny_models.tokenizer("llama").get_vocab()}
    assert known == tiny_models.tokenizer("gpt_neox").get_vocab()  # it adds a BOS in front
    with pytest.raises(BadInput, match="read the texts as different tokens"):
        change(study, other)
    assert len(change(study, other, tokenizer=study.model_a))  # as it is told

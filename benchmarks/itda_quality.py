"""How well do dictionaries of activations fit unseen text, by size and by coefficients?

python benchmarks/itda_quality.py --train-text valid.txt --test-text test.txt --figure quality.png

Trains a small GPT-NeoX from nothing on the training text (English, such as WikiText-2), then
dictionaries on the same text, each with the highest threshold that fills it, and measures the mean
FVU on the test text. The first k steps of a pursuit are the pursuit with k, so that one encoding
serves all k. Atoms drawn at random are the comparison.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from model_diffs.activations import passes
from model_diffs.activations.tokens import padded_batches
from model_diffs.core.figures import OTHERS, Line, Panel, layer_figure
from model_diffs.data import text_datasets
from model_diffs.dictionaries import pursuit, reading, training
from model_diffs.dictionaries.options import Training
from model_diffs.dictionaries.reading import Reading
from model_diffs.models import loading
from model_diffs.stats.intervals import ratio_interval

SIZES = (64, 256, 1024, 4096)
STEPS = (1, 2, 5, 10, 20, 40, 64)
THRESHOLDS = [0.9 * 0.85**i for i in range(26)]  # down to 0.015
LENGTH, LAYER = 128, 2


def train_model(texts: list[str], steps: int, folder: Path) -> None:
    """A small model and its tokenizer, from nothing, saved."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, PreTrainedTokenizerFast

    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(texts, 2048, special_tokens=["<eos>"], show_progress=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, eos_token="<eos>")
    tokenizer.save_pretrained(folder)
    stream = [token for text in texts for token in (*tokenizer(text)["input_ids"], 0)]
    data = torch.tensor(stream[: len(stream) // LENGTH * LENGTH]).view(-1, LENGTH)
    config = GPTNeoXConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=512,
        max_position_embeddings=LENGTH,
    )
    model = GPTNeoXForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    for step in range(steps):
        batch = data[torch.randint(len(data), (16,))]
        loss = model(batch, labels=batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if step % 50 == 0 or step == steps - 1:
            print(f"step {step}: {float(loss.detach()):.3f} nats per token", flush=True)
    model.save_pretrained(folder)


@torch.inference_mode()
def states(reader: passes.Reader, texts: Reading) -> tuple[Tensor, np.ndarray]:
    """Outputs of the layer `[n, d]`, and the document of each."""
    order = [
        range(i, min(i + 16, len(texts.tokens.ids))) for i in range(0, len(texts.tokens.ids), 16)
    ]
    found: list[Tensor] = []
    documents: list[np.ndarray] = []
    for at in padded_batches(texts.tokens, order, 0, torch.device("cpu")):
        found.append(reading.activations(reader, at, [LAYER])[LAYER])
        documents.append(np.array(at.rows)[at.places[:, 0].numpy()])
    return torch.cat(found), np.concatenate(documents)


def fvu_by_steps(x: Tensor, documents: np.ndarray, atoms: Tensor) -> list[Any]:
    """Mean FVU with its interval after each of STEPS."""
    codes = pursuit.matching_pursuit(x, atoms, max(STEPS), pursuit.gram_of(atoms))
    energy = x.double().square().sum(1)
    left = 1 - codes.values.double().square().cumsum(1) / energy[:, None]
    counts = np.bincount(documents)
    return [
        ratio_interval(np.bincount(documents, left[:, k - 1].clamp_min(0).numpy()), counts, 0)
        for k in STEPS
    ]


def draw(table: dict[tuple[str, int], list[Any]], path: Path) -> None:
    """FVU against coefficients, a line per size; against size, a line per number of them."""
    by_k, by_size = [], []
    for colour, size in zip(OTHERS, SIZES, strict=False):
        for kind, style in (("ITDA", "-"), ("random", "--")):
            rows = table[kind, size]
            ends = [[float(row[i]) for row in rows] for i in range(3)]
            label = f"{size} atoms" if kind == "ITDA" else f"{size}, drawn at random"
            by_k.append(Line(label, [float(k) for k in STEPS], ends[0], colour, style, *ends[1:]))
    for colour, k in zip(OTHERS, (1, 5, 20, 40), strict=False):
        for kind, style in (("ITDA", "-"), ("random", "--")):
            rows = [table[kind, size][STEPS.index(k)] for size in SIZES]
            ends = [[float(row[i]) for row in rows] for i in range(3)]
            label = f"k = {k}" if kind == "ITDA" else f"k = {k}, drawn at random"
            by_size.append(
                Line(label, [float(s) for s in SIZES], ends[0], colour, style, *ends[1:])
            )
    panels = [
        Panel("By number of coefficients", "mean FVU, unseen text", by_k, log=True, xlabel="k"),
        Panel("By size", "mean FVU, unseen text", by_size, log=True, xlabel="atoms"),
    ]
    figure = layer_figure("ITDA on WikiText-2, a small model's block 2", panels)
    for axes, ticks in zip(figure.axes, (STEPS, SIZES), strict=True):
        axes.set_xscale("log")
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.minorticks_off()
        axes.legend(fontsize=8, ncols=2, loc="lower left")
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--train-text", required=True)
    parser.add_argument("--test-text", required=True)
    parser.add_argument("--figure", type=Path, required=True)
    parser.add_argument("--model", type=Path, default=None, help="kept here, and used if there")
    parser.add_argument("--steps", type=int, default=400)
    options = parser.parse_args()
    torch.manual_seed(0)
    names = (options.train_text, options.test_text)
    long = [[t for t in text_datasets.read_dataset(n).texts if len(t) > 200] for n in names]
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.model or Path(scratch) / "model"
        if not (folder / "config.json").exists():
            train_model(long[0], options.steps, folder)
        tokenizer = loading.load_tokenizer(str(folder))
        readings = []
        for name, lines in zip(("train", "test"), long, strict=True):
            file = Path(scratch) / f"{name}.txt"
            file.write_text("\n".join(lines))
            settings = Training(layer=(LAYER,), seq_len=LENGTH)
            readings.append(reading.read([str(file)], tokenizer, settings))
        model = loading.load_model(str(folder), torch.device("cpu"), torch.float32)
        measure(passes.Reader(str(folder), model), *readings, options)


def fill(reader: passes.Reader, train: Reading, size: int) -> Tensor:
    """Atoms `[size, d]` of the dictionary with the highest threshold that fills it."""
    for threshold in THRESHOLDS:
        settings = Training(layer=(LAYER,), k=10, max_atoms=size, fvu_threshold=threshold)
        start = time.perf_counter()
        (found,), _ = training.train(reader, train, 0, [LAYER], settings)
        if len(found.atoms) == size:
            break
    dead = found.judged.dead_share
    print(
        f"{len(found.atoms)} atoms, threshold {threshold:.3f}, {found.rows[-1].tokens} tokens, "
        f"{time.perf_counter() - start:.0f} s; dead {'unknown' if dead is None else f'{dead:.1%}'}",
        flush=True,
    )
    return found.atoms


def measure(
    reader: passes.Reader, train: Reading, test: Reading, options: argparse.Namespace
) -> None:
    """Train the dictionary, measure it and the random one, print and draw."""
    dictionaries = {size: fill(reader, train, size) for size in SIZES}
    x, documents = states(reader, test)
    keep = documents < 200
    x, documents = x[torch.from_numpy(keep)], documents[keep]
    pool = torch.nn.functional.normalize(states(reader, train)[0], dim=1)
    pool = pool[torch.randperm(len(pool))]
    table = {}
    print(f"{len(x)} unseen tokens\n{'atoms':>16} " + " ".join(f"k={k:<6}" for k in STEPS))
    for size in SIZES:
        for kind, atoms in (("ITDA", dictionaries[size]), ("random", pool[:size])):
            table[kind, size] = fvu_by_steps(x, documents, atoms)
            row = " ".join(f"{float(one.mean):<8.4f}" for one in table[kind, size])
            print(f"{kind:>9} {size:6d} {row}", flush=True)
    draw(table, options.figure)


if __name__ == "__main__":
    main()

"""What does each step take on models of 6.9 B parameters, in multiples of its floor?

Makes three GPT-NeoX models of that shape (hidden 4096, 32 blocks, bf16) with random weights, 500 +
500 texts of up to 512 tokens and questions in --place, where they stay; then runs the steps asked
for, each in a process of its own, with the settings of studies/deep-ignorance.toml. Printed per
step: seconds, the floor in the same run, their ratio, the peak of device and of main memory (the
interpreter's own included). Floors: for weights, reading all files; for activations, bare passes of
all trunks, of step 11 the base's. --scale shrinks widths, blocks, vocabulary and texts alike. Each
command below takes less than ten minutes on one GPU of 141 GB.

    uv run benchmarks/full_size.py --steps make
    uv run benchmarks/full_size.py --steps 1 7 10
    uv run benchmarks/full_size.py --steps 4 8 9 11 17
    uv run benchmarks/full_size.py --steps 12
    uv run benchmarks/full_size.py --steps 13 14
    uv run benchmarks/full_size.py --scale 0.02 --place /tmp/small      # all, on a CPU
"""

import argparse
import json
import multiprocessing
import random
import sys
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
NAMES = ("base", "filtered", "unlearned")
WORDS = 5000
SCRIPTS = {
    "1": "collect_param_stats.py",
    "4": "collect_activation_norms.py",
    "7": "null_space_analysis.py",
    "8": "activation_separation_analysis.py",
    "9": "activation_covariance_analysis.py",
    "10": "mlp_nullspace_alignment.py",
    "11": "row_space_projection_analysis.py",
    "12": "local_lipschitzness_analysis.py",
    "13": "linear_probe_analysis.py",
    "14": "relearn.py",
    "17": "kl_divergence.py",
}
FLOORS = {**dict.fromkeys(("1", "7", "10"), "read"), "11": "base", "14": ""}


class Taken(NamedTuple):
    """What one process took."""

    seconds: float
    device: float
    """Bytes at the peak; 0 without a device that counts."""
    host: float


# ── what is measured ──────────────────────────────────────────────────────────────────────────────


def shape(scale: float) -> dict[str, Any]:
    """The configuration of the models."""
    heads = max(1, round(32 * scale))
    return {
        "hidden_size": 128 * heads if heads > 1 else 64,
        "num_attention_heads": heads,
        "num_hidden_layers": max(2, round(32 * scale)),
        "intermediate_size": 512 * heads if heads > 1 else 256,
        "vocab_size": max(512, round(50304 * scale)),
        "max_position_embeddings": 2048,
    }


def write_models(place: Path, scale: float) -> None:
    """Random weights, and two changes of them, a tensor at a time."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, PreTrainedTokenizerFast

    from model_diffs.unlearning.saving import write_weights

    config = GPTNeoXConfig(**shape(scale), dtype="bfloat16", architectures=["GPTNeoXForCausalLM"])
    with torch.device("meta"):
        laid_out = GPTNeoXForCausalLM(config).state_dict()
    device = "cuda" if torch.cuda.is_available() else "cpu"

    def draw(seed: int, size: tuple[int, ...], spread: float) -> torch.Tensor:
        generator = torch.Generator(device).manual_seed(seed)
        return spread * torch.randn(size, generator=generator, device=device)

    def tensors(changed: int) -> Iterator[tuple[str, torch.Tensor]]:
        for number, (name, empty) in enumerate(laid_out.items()):
            norm = "norm" in name and name.endswith("weight")
            W = draw(number, (*empty.shape,), 0.02) + float(norm)
            if changed:
                W += draw(changed * 10_000 + number, (*empty.shape,), 0.002)
            yield name, W.bfloat16().cpu()

    words = {f"w{i}": i for i in range(min(WORDS, config.vocab_size))}
    rule = Tokenizer(models.WordLevel(words, unk_token="w0"))
    rule.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=rule, pad_token="w0", eos_token="w0")
    shapes = {name: ((*one.shape,), torch.bfloat16) for name, one in laid_out.items()}
    for number, name in enumerate(NAMES):
        folder = place / name
        folder.mkdir(parents=True, exist_ok=True)
        config.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        write_weights(folder / "model.safetensors", shapes, tensors(number))
    print(f"{sum(prod(one.shape) for one in laid_out.values()) / 1e9:.3f} B weights each")


def write_texts(place: Path, scale: float) -> None:
    """Lines of random words, and four-choice questions of every fold."""
    vocabulary = min(WORDS, int(shape(scale)["vocab_size"]))
    count, longest = max(12, round(500 * scale)), max(16, round(512 * scale))

    def words(draw: random.Random, number: int) -> str:
        return " ".join(f"w{draw.randrange(1, vocabulary)}" for _ in range(number))

    for split in ("forget", "retain"):
        draw = random.Random(split)
        lines = [words(draw, draw.randint(longest // 8, longest)) for _ in range(count)]
        (place / f"{split}.txt").write_text("\n".join(lines) + "\n")


def make(place: Path, scale: float) -> None:
    """Models and texts, unless they are there with this scale."""
    done = place / "scale.json"
    if done.is_file() and json.loads(done.read_text()) == scale:
        return
    place.mkdir(parents=True, exist_ok=True)
    write_models(place, scale)
    write_texts(place, scale)
    done.write_text(json.dumps(scale))


# ── running ───────────────────────────────────────────────────────────────────────────────────────


def words_of(step: str, place: Path) -> list[str]:
    """The options of a step, as the published study gives them."""
    models = [str(place / name) for name in NAMES]
    texts = ["--forget-text", str(place / "forget.txt"), "--retain-text", str(place / "retain.txt")]
    found = ["--model-a", models[0], "--model-b", *models[1:]]
    if step in ("13", "14"):
        found = ["--model", *models]
    attack = "--arm lora --lr 1e-4 --steps 20 --eval-steps 0,20 --batch-tokens 2048"
    more = {"12": ["--max-length", "128"], "14": attack.split()}
    found += [] if step in ("1", "7", "10") else texts
    return [*found, *more.get(step, []), "--outroot", str(place / "outputs"), "--force"]


def run_script(step: str, place: Path) -> None:
    """One step, from its command line."""
    from model_diffs.core import script
    from model_diffs.core.step import load_script

    sys.argv = [SCRIPTS[step], *words_of(step, place)]
    script.execute(load_script(ROOT / SCRIPTS[step]))


def read_files(place: Path) -> float:
    """Seconds of reading all weight files once."""
    started = time.perf_counter()
    buffer = bytearray(1 << 26)
    for name in NAMES:
        with (place / name / "model.safetensors").open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
    return time.perf_counter() - started


def bare_passes(place: Path, names: tuple[str, ...]) -> float:
    """Seconds of the trunks' passes over both splits, models loaded before."""
    import torch

    from model_diffs.activations import passes
    from model_diffs.activations.passes import Reader
    from model_diffs.core.options import Reading
    from model_diffs.models import loading

    texts = {f"{split}_text": str(place / f"{split}.txt") for split in ("forget", "retain")}
    options, seconds = Reading(**texts, skip_first=0), 0.0
    sample, _ = passes.of_splits(options, [str(place / name) for name in names])
    for name in names:
        model: Any = loading.load_for(options, str(place / name))
        reader = Reader(name, model)
        for one in sample:
            started = time.perf_counter()
            for at in one.batches("bare"):
                with torch.inference_mode():
                    last = reader.anatomy.trunk(**at.batch._asdict(), use_cache=False)[0]
            float(last[0, 0, 0])  # waits for the device
            seconds += time.perf_counter() - started
        del model, reader
    return seconds


def _child(work: Callable[..., Any], arguments: tuple[Any, ...], pipe: Any) -> None:
    from model_diffs.core.provenance import peak_memory_bytes

    started = time.perf_counter()
    found = work(*arguments)
    torch = sys.modules.get("torch")
    seconds = time.perf_counter() - started
    counts = torch is not None and torch.cuda.is_initialized()
    device = torch.cuda.max_memory_allocated() if torch is not None and counts else 0
    pipe.send((found, Taken(seconds, device, peak_memory_bytes())))


def apart(work: Callable[..., Any], *arguments: Any) -> tuple[Any, Taken]:
    """Do it in a fork of this process, which has imported what steps import and no more."""
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(work, arguments, there))
    process.start()
    there.close()
    try:
        found = here.recv()
    except EOFError:
        raise SystemExit(f"{work.__name__} {arguments[0]} failed") from None
    process.join()
    return found


def floors(steps: list[str], place: Path) -> dict[str, float]:
    """Seconds of the floors that these steps are held against."""
    wanted = {FLOORS.get(step, "all") for step in steps}
    measured: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
        "read": (read_files, (place,)),
        "all": (bare_passes, (place, NAMES)),
        "base": (bare_passes, (place, NAMES[:1])),
    }
    return {
        name: apart(work, *arguments)[0]
        for name, (work, arguments) in measured.items()
        if name in wanted
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", nargs="+", default=["make", *SCRIPTS], help="numbers, or make")
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--place", type=Path, default=ROOT / "models" / "full_size")
    options = parser.parse_args()
    apart(make, options.place, options.scale)
    steps = [step for step in options.steps if step != "make"]
    if not steps:
        return
    from model_diffs.pipeline.prepared import HEAVY

    for name in HEAVY:
        import_module(name)
    found = floors(steps, options.place)
    print(f"scale {options.scale:g}: {shape(options.scale)}")
    print(f"{'step':5s} {'seconds':>8s} {'floor':>8s} {'ratio':>6s} {'device GB':>10s} {'GB':>6s}")
    for step in steps:
        _, taken = apart(run_script, step, options.place)
        floor = found.get(FLOORS.get(step, "all"))
        held = f"{floor:8.1f} {taken.seconds / floor:6.2f}" if floor else f"{'–':>8s} {'–':>6s}"
        memory = f"{taken.device / 1e9:10.2f} {taken.host / 1e9:6.2f}"
        print(f"{step:5s} {taken.seconds:8.1f} {held} {memory}", flush=True)


if __name__ == "__main__":
    main()

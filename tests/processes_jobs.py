"""Run scripts one after the other in each process of a launcher, as each would run by itself.

accelerate launch … tests/processes_jobs.py jobs.json OUTROOT      # {name: [script, words]}
"""

import json
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from model_diffs.core import script  # noqa: E402
from model_diffs.core.processes import processes  # noqa: E402
from model_diffs.core.step import load_script  # noqa: E402

jobs, outroot = json.loads(Path(sys.argv[1]).read_text()), sys.argv[2]
processes()  # the processes find each other before one of them is busy
for name, words in jobs.values():
    given = [*words, "--outroot", outroot]
    sys.argv = [name, *given]
    module = load_script(HERE.parent / name)
    if hasattr(module, "STEP"):
        script.execute(module, given)
    else:
        module.main()

"""Run several `unlearn.py` command lines, one after the other, on the processes of one launch.

    accelerate launch … tests/unlearning_jobs.py jobs.json      # [[sharded, arguments], …]

Starting processes and importing torch takes longer than all the training of the tests.
"""

import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch

import unlearn
from model_diffs.core import script

torch.set_num_threads(1)
for sharded, arguments in json.loads(Path(sys.argv[1]).read_text()):
    os.environ["ACCELERATE_USE_FSDP"] = str(sharded).lower()  # what --use_fsdp sets
    script.execute(unlearn, arguments)

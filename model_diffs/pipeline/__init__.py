"""What a study runs: its file, the plan, and the checks before a long run.

- `studies`: study files (TOML), typed, and what the environment says instead
- `plan`: which script runs on which models, what it waits for, what is complete
- `__main__`: what `pipeline.sh` asks: the plan, a failure, the closing table
- `preflight`, `preflight_machine`: the checks of `check_experiment.py`: texts and questions;
  packages, device, models, memory and disk
"""

"""What a study runs: its file, the plan, and the checks before a long run.

- `studies`: study files (TOML), typed
- `environment`: what BASE, COMPARE, OUTROOT, LAUNCHER and the like say instead
- `plan`: which scripts run, on which models, with which options
- `units`: one process each: what it would fill, what of that is complete, its command
- `__main__`: what `pipeline.sh` asks: the plan, a failure, the closing table
- `preflight`: the checks of `check_experiment.py`
"""

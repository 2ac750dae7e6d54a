"""What a study runs: its file, the plan, its processes, and the checks before a long run.

- `studies`: study files (TOML), typed
- `environment`: what BASE, COMPARE, OUTROOT, LAUNCHER and the like say instead
- `plan`: which scripts run, on which models, with which options
- `units`: one process each: what it would fill, what of that is complete, its command
- `executor`: runs units one after another: logs, signals, failures
- `lock`: one pipeline at a time; what killed ones left behind
- `closing`: the table at the end
- `__main__`: the command line of `pipeline.sh`
- `preflight`: the checks of `check_experiment.py`
"""

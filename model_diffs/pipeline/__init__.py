"""What a study runs: its file, the plan, its processes, and the checks before a long run.

- `studies`: study files (TOML)
- `typed`: their tables as dataclasses, checked
- `environment`: what BASE, COMPARE, OUTROOT, LAUNCHER and the like say instead
- `plan`: which scripts run, on which models, with which options
- `units`: one process each: what it would fill, what of that is complete, its command
- `graph`: what waits for what; how a step is divided
- `executor`: runs units on this machine, in turn or several at a time
- `processes`: one of them: how it starts, what it says, how it ends
- `prepared`: forks of one interpreter that has imported what most scripts need
- `cluster`: submits units to SLURM, and looks how they stand
- `lock`: one pipeline at a time; what killed ones left behind
- `closing`: the table at the end
- `__main__`: the command line of `pipeline.sh`
- `preflight`: the checks of `check_experiment.py`
"""

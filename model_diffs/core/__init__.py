"""What every script needs; no other room is imported here.

- `step`: the declaration of a step, its scripts, the folders that it fills
- `options`: a script's options as a dataclass, its checks, and the groups that scripts share
- `command_line`: an options dataclass read from the words of a command line
- `script`, `parent`: start and end of a script; a process ends with the one that started it
- `processes`: several processes of one script
- `results`: result folders: complete or stale, written whole, what they record
- `measure`: the numbers of the signature that a step declares
- `tables`: tables under an outroot, checked as they are read
- `naming`: folder names of models and comparisons
- `records`, `content`: what a result records, and whether a file still holds what it held
- `folders`, `provenance`: hidden siblings that are renamed into place; versions, memory, commit
- `memory`: what a step needs before it loads anything
- `methods`: names, descriptions and colours of unlearning methods
- `errors`, `progress`, `figures`, `tracking`: bad input, bars, one look for figures, W&B
"""

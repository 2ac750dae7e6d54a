"""What every script needs; no other room is imported here.

- `step`: the declaration of a step, its scripts, the folders that it fills
- `options`: dataclasses that are configuration and command line at once
- `script`, `parent`: start and end of a script; a process ends with the one that started it
- `results`: result folders: complete or stale, written whole, what they record
- `measure`: the numbers of the signature that a step declares
- `tables`: tables under an outroot, checked as they are read
- `naming`: folder names of models and comparisons
- `records`, `content`: what a result records, and whether a file still holds what it held
- `folders`, `provenance`: hidden siblings that are renamed into place; versions, memory, commit
- `methods`: names, descriptions and colours of unlearning methods
- `errors`, `progress`, `figures`, `tracking`: bad input, bars, one look for figures, W&B
"""

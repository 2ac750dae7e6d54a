"""The tables of README.md and docs/signature.md that repeat what the steps declare: write or check.

    uv run docs/tables.py            # write them
    uv run docs/tables.py --check    # status 1 where one is not as the steps say

A table stands between `<!-- table: NAME -->` and `<!-- end -->`; STEP in each script is its source.
"""

import re
import sys
from dataclasses import dataclass
from pathlib import Path

from model_diffs.core.command_line import parse
from model_diffs.core.options import option
from model_diffs.core.script import run_script
from model_diffs.core.step import load_steps
from model_diffs.report.tables import measures_table

ROOT = Path(__file__).parent.parent
FILES = ("README.md", "docs/signature.md")


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options."""

    check: bool = option(False, "change nothing; status 1 where a table is not up to date")


def steps_table() -> str:
    """A row per script: number, script, question."""
    rows = [f"| {s.step.number} | `{s.name}` | {s.step.question} |" for s in load_steps()]
    return "\n".join(["| step | script | question |", "|---|---|---|", *rows])


TABLES = {"steps": steps_table, "measures": lambda: measures_table(load_steps())}


def with_tables(text: str) -> str:
    """A document with its tables as the steps declare them now."""

    def write(found: re.Match[str]) -> str:
        return f"<!-- table: {found[1]} -->\n{TABLES[found[1]]()}\n<!-- end -->"

    return re.sub(r"<!-- table: (\w+) -->\n.*?<!-- end -->", write, text, flags=re.S)


def main() -> None:
    """Write or check every table."""
    options = parse(Options, None, __doc__)
    for name in FILES:
        path = ROOT / name
        old = path.read_text(encoding="utf-8")
        new = with_tables(old)
        if new == old:
            continue
        if options.check:
            print(f"{name}: a table is out of date: run uv run docs/tables.py", file=sys.stderr)
            sys.exit(1)
        path.write_text(new, encoding="utf-8")
        print(f"{name}: written")


if __name__ == "__main__":
    run_script(main)

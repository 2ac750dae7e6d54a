#!/usr/bin/env bash
# Runs a study from end to end: makes its models, measures every comparison, writes the page.
# This file finds uv and the environment; model_diffs/pipeline plans and runs.
# Written for bash 3.2 (macOS). ./pipeline.sh --help lists options, steps and variables.
set -euo pipefail

fail() {
  printf 'pipeline.sh: %s\n' "$1" >&2
  exit 2
}

# A study given by path is looked for where the command was typed.
WORDS=()
for word in "$@"; do
  if [[ $word == *.toml && -f $word ]]; then word=$(cd "$(dirname -- "$word")" && pwd)/$(basename -- "$word"); fi
  WORDS+=("$word")
done
cd "$(dirname -- "$0")"

command -v uv > /dev/null || fail "uv is not installed: pip install uv"
# Each step is a process of its own: without cached bytecode each would compile torch anew.
unset PYTHONDONTWRITEBYTECODE
VENV=${UV_PROJECT_ENVIRONMENT:-.venv}
if [ ! -d "$VENV" ]; then echo "setting up the environment (.venv) with uv, once …"; fi
if [ -z "${UV_NO_SYNC:-}" ]; then
  SYNC=(--quiet --inexact)
  # Of torch the build that is offered locally, though the registry may have a newer version; where
  # versions are locked already, those.
  if [ -d "${UV_FIND_LINKS:-}" ] && [ ! -f uv.lock ]; then
    build=$(find "$UV_FIND_LINKS" -name 'torch-[0-9]*.whl' | sort -V | tail -n 1)
    build=$(sed -nE 's|.*/torch-([0-9.]+[0-9]).*|\1|p' <<< "$build")
    if [ -n "$build" ]; then SYNC+=(--upgrade-package "torch==$build"); fi
  fi
  uv sync "${SYNC[@]}" || fail "uv sync failed: run it to see why"
fi
[ -x "$VENV/bin/python" ] || fail "$VENV holds no Python: run uv sync"

# The same process from here on: a signal to this script reaches the pipeline.
exec "$VENV/bin/python" -m model_diffs.pipeline ${WORDS[@]+"${WORDS[@]}"}

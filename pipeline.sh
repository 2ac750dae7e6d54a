#!/usr/bin/env bash
# Runs a study from end to end: makes its models, measures every comparison, writes the page.
# The plan (model_diffs/pipeline) says which commands are needed; they are run here one by one.
# Written for bash 3.2 (macOS). ./pipeline.sh --help lists options, steps and variables.
set -euo pipefail

fail() {
  printf 'pipeline.sh: %s\n' "$1" >&2
  exit 2
}

# A study given by path is looked for where the command was typed.
WORDS=()
for word in "$@"; do
  if [ -f "$word" ]; then word=$(cd "$(dirname "$word")" && pwd)/$(basename "$word"); fi
  WORDS+=("$word")
done
cd "$(dirname "$0")"

command -v uv > /dev/null || fail "uv is not installed: pip install uv"
# Each step is a process of its own: without cached bytecode each would compile torch anew.
unset PYTHONDONTWRITEBYTECODE
if [ ! -d "${UV_PROJECT_ENVIRONMENT:-.venv}" ]; then echo "setting up the environment (.venv) with uv, once …"; fi
if [ -z "${UV_NO_SYNC:-}" ]; then uv sync --quiet --inexact || fail "uv sync failed: run it to see why"; fi

PLAN=$(mktemp -d)
trap 'rm -rf "$PLAN"' EXIT
ask() { # question [words …]: what the plan knows; the lock is not handed on
  local question=$1
  shift
  uv run --no-sync python -m model_diffs.pipeline "$question" "$PLAN" "$@" 9>&-
}

ask plan ${WORDS[@]+"${WORDS[@]}"}
[ -f "$PLAN/units" ] || exit 0
{ read -r OUTROOT; read -r INVOCATION; read -r KEEP_GOING; } < "$PLAN/settings"
export MODEL_DIFFS_INVOCATION="${MODEL_DIFFS_INVOCATION:-$INVOCATION}"

# Held by this shell alone and not handed to its children, so it ends when the shell does.
exec 9> "$OUTROOT/.lock"
if command -v flock > /dev/null; then
  flock -n 9 || fail "another pipeline is running on $OUTROOT: wait for it, or set OUTROOT"
else
  uv run --no-sync python -c 'import fcntl; fcntl.flock(9, fcntl.LOCK_EX | fcntl.LOCK_NB)' 2> /dev/null ||
    fail "another pipeline is running on $OUTROOT: wait for it, or set OUTROOT"
fi

trap 'printf "\ninterrupted\n" >&2; ask close; exit 130' INT
FAILED=0
while IFS=$'\t' read -r -a unit <&7; do
  log=${unit[4]} status=0
  printf 'step %-2s %s (%s)\n' "${unit[1]}" "${unit[2]}" "${unit[3]}"
  exec 8>&2 # progress bars reach the terminal, everything else the log
  MODEL_DIFFS_PROGRESS_FD=8 "${unit[@]:5}" > "$log" 2>&1 7<&- 9>&- < /dev/null || status=$?
  exec 8>&-
  grep '^warning' "$log" || true
  printf '%s %s\n' "${unit[0]}" "$status" >> "$PLAN/ran"
  if [ "$status" != 0 ]; then
    FAILED=$status
    ask failed "${unit[0]}" "$status"
    if [ "$KEEP_GOING" = 0 ]; then break; fi
  fi
done 7< "$PLAN/units"
ask close
if [ "$FAILED" != 0 ] && [ "$KEEP_GOING" = 1 ]; then FAILED=1; fi
exit "$FAILED"

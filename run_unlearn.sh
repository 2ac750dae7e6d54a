#!/usr/bin/env bash
# Makes one unlearned model, with settings from the environment. Written for bash 3.2 (macOS).
set -euo pipefail

DEFAULT_MODEL=EleutherAI/deep-ignorance-unfiltered

usage() {
  cat <<USAGE
./run_unlearn.sh METHOD [option of unlearn.py …]

Each option of unlearn.py that takes a value can be set in the environment, for example
  DEVICE=mps EPOCHS=3 LR=2e-5 ./run_unlearn.sh npo
  MODEL=models/miniature-base LAYER_ID=1,2 ./run_unlearn.sh rmu --force
MODEL is $DEFAULT_MODEL unless given.
LAUNCHER="accelerate launch --num_processes 2" runs it on several processes.
The model goes to OUTDIR, or to unlearned_models/<model>__<method>.

METHOD and the options:
USAGE
}

fail() {
  printf 'run_unlearn.sh: %s\n' "$1" >&2
  exit 2
}

# Paths are relative to where the command was typed, so the working folder stays as it is.
HERE=$(cd "$(dirname "$0")" && pwd)
command -v uv > /dev/null || fail "uv is not installed: pip install uv"
case "${1:-}" in
  -h | --help) usage; uv run --project "$HERE" python "$HERE/unlearn.py" --help; exit 0 ;;
  "") fail "name a method (--help lists them)" ;;
  -*) fail "the method comes first (--help)" ;;
esac
METHOD=$1
shift

MODEL=${MODEL:-$DEFAULT_MODEL}
FLAGS=$(uv run --project "$HERE" python -m model_diffs.unlearning.settings)
ARGUMENTS=(--method "$METHOD")
for flag in $FLAGS; do
  name=$(printf '%s' "${flag#--}" | tr 'a-z-' 'A-Z_') # --batch-size → BATCH_SIZE
  if [ -n "${!name:-}" ]; then ARGUMENTS+=("$flag" "${!name}"); fi
done
read -r -a LAUNCH <<< "${LAUNCHER:-python}"
exec uv run --project "$HERE" "${LAUNCH[@]}" "$HERE/unlearn.py" "${ARGUMENTS[@]}" "$@"

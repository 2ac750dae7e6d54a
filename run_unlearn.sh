#!/usr/bin/env bash
# Makes one unlearned model, with settings from the environment. Written for bash 3.2 (macOS).
set -euo pipefail

# Each of these is an option of unlearn.py: LR=2e-5 becomes --lr 2e-5.
OPTIONS="device dtype epochs lr batch-size grad-accum-steps warmup-steps grad-clip optimizer
  trainable lora-rank max-length max-samples seed forget-data retain-data questions eval-split
  eval-interval checkpoint-every save-dtype outdir beta gamma logprob-reduction alpha
  steering-coeff layer-id forget-weight retain-weight cb-target lat-layer lat-eps lat-steps
  lat-step-size"
DEFAULT_MODEL=EleutherAI/deep-ignorance-unfiltered

usage() {
  cat <<USAGE
./run_unlearn.sh METHOD [option of unlearn.py …]

  METHOD  ga_simple ga grad_diff dpo npo simnpo rmu cb lat cb_lat

Settings come from the environment, for example
  DEVICE=mps EPOCHS=3 LR=2e-5 ./run_unlearn.sh npo
  MODEL=models/miniature-base LAYER_ID=1,2 ./run_unlearn.sh rmu --force
MODEL is $DEFAULT_MODEL unless given. The others:
$(variables | fold -s -w 76 | sed 's/^/  /')
LAUNCHER="accelerate launch --num_processes 2" runs it on several processes.
The model goes to OUTDIR, or to unlearned_models/<model>__<method>.
USAGE
}

fail() {
  printf 'run_unlearn.sh: %s\n' "$1" >&2
  exit 2
}

variable() { printf '%s' "$1" | tr 'a-z-' 'A-Z_'; } # batch-size → BATCH_SIZE

variables() {
  local option
  for option in $OPTIONS; do printf '%s ' "$(variable "$option")"; done
  printf '\n'
}

case "${1:-}" in
  -h | --help) usage; exit 0 ;;
  "") fail "name a method (--help lists them)" ;;
  -*) fail "the method comes first (--help)" ;;
esac
METHOD=$1
shift
command -v uv > /dev/null || fail "uv is not installed: pip install uv"

ARGUMENTS=(--model "${MODEL:-$DEFAULT_MODEL}" --method "$METHOD")
for option in $OPTIONS; do
  name=$(variable "$option")
  if [ -n "${!name:-}" ]; then ARGUMENTS+=("--$option" "${!name}"); fi
done
read -r -a LAUNCH <<< "${LAUNCHER:-python}"

# Paths are meant from where the command was typed, so the script is looked for and nothing moves.
HERE=$(cd "$(dirname "$0")" && pwd)
exec uv run --project "$HERE" "${LAUNCH[@]}" "$HERE/unlearn.py" "${ARGUMENTS[@]}" "$@"

#!/usr/bin/env bash
# Makes one unlearned model per method from the base of a study; what is complete is skipped.
# Written for bash 3.2 (macOS).
set -euo pipefail

ALL="ga_simple ga grad_diff dpo npo simnpo rmu cb lat cb_lat"

usage() {
  cat <<USAGE
./create_all_unlearning_models.sh [STUDY] [--force] [--help]

  STUDY    a file in studies/ by name, or a path (default: deep-ignorance)
  --force  make again what is complete

The study sets BASE, the texts, and UNLEARN_<method>, the settings of each method. METHODS in the
environment names some of them, by default: $ALL
The models go to unlearned_models/<base>__<method>. One that fails does not stop the others; the
exit status is then 1.
USAGE
}

fail() {
  printf 'create_all_unlearning_models.sh: %s\n' "$1" >&2
  exit 2
}

stamp() { # changes when the model in folder $1 is made anew
  if [ -f "$1/run.json" ]; then cksum < "$1/run.json"; fi
}

STUDY="" FORCE=()
while [ $# -gt 0 ]; do
  case "$1" in
    --force) FORCE=(--force) ;;
    -h | --help) usage; exit 0 ;;
    -*) fail "unknown option $1 (--help lists them)" ;;
    *) [ -z "$STUDY" ] || fail "one study at a time: $STUDY or $1"; STUDY=$1 ;;
  esac
  shift
done
CHOSEN=${METHODS:-$ALL}

# A study given by path is looked for where the command was typed.
STUDY=${STUDY:-deep-ignorance}
STUDY_FILE=""
if [ -f "$STUDY" ]; then STUDY_FILE=$(cd "$(dirname "$STUDY")" && pwd)/$(basename "$STUDY"); fi
cd "$(dirname "$0")"
STUDY_FILE=${STUDY_FILE:-studies/${STUDY%.sh}.sh}
[ -f "$STUDY_FILE" ] || fail "$STUDY: no such study; there are: $(cd studies && echo *.sh)"
command -v uv > /dev/null || fail "uv is not installed: pip install uv"

# ── the study ────────────────────────────────────────────────────────────────────────────────────

MAKE=() BASE="" FORGET_TEXT=data/forget.txt RETAIN_TEXT=data/retain.txt QUESTIONS=""
# shellcheck source=/dev/null
. "$STUDY_FILE"
[ -n "$BASE" ] || fail "$STUDY_FILE sets no BASE"
read -r -a LAUNCH <<< "${LAUNCHER:-python}"
# The first call brings the environment up to date; the others need not look again.
LABEL=$(uv run --quiet python -c \
  'import sys; from model_diffs.core.naming import model_label; print(model_label(sys.argv[1]))' "$BASE")
for script in ${MAKE[@]+"${MAKE[@]}"}; do uv run --no-sync python "$script"; done

# ── a model per method ───────────────────────────────────────────────────────────────────────────

ROWS=() FOLDERS=() FAILED=0
trap 'printf "\ninterrupted; what is complete is kept\n" >&2; exit 130' INT
for method in $CHOSEN; do
  extra=UNLEARN_$method
  ARGUMENTS=(--model "$BASE" --method "$method"
    --forget-data "$FORGET_TEXT" --retain-data "$RETAIN_TEXT")
  [ -z "$QUESTIONS" ] || ARGUMENTS+=(--questions "$QUESTIONS")
  # shellcheck disable=SC2206  # the study's settings are words
  ARGUMENTS+=(${!extra:-})
  folder=unlearned_models/${LABEL}__$method
  before=$(stamp "$folder") status=0
  printf '\n── %s %s\n' "$method" "${!extra:-}"
  uv run --no-sync "${LAUNCH[@]}" unlearn.py "${ARGUMENTS[@]}" ${FORCE[@]+"${FORCE[@]}"} || status=$?
  result="done"
  if [ "$(stamp "$folder")" = "$before" ]; then result=skipped; fi
  if [ "$status" != 0 ]; then result=failed FAILED=1; fi
  ROWS+=("$method=$result")
  FOLDERS+=("$folder")
done

printf '\n'
uv run --no-sync python -m model_diffs.unlearning.summary --results "${ROWS[*]}" "${FOLDERS[@]}"
exit "$FAILED"

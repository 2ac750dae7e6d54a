#!/usr/bin/env bash
# Runs a study from end to end: makes its models, measures every comparison, draws the figures.
# What is complete is skipped; what became stale is run again. Written for bash 3.2 (macOS).
set -euo pipefail

usage() {
  cat <<'USAGE'
./pipeline.sh [STUDY] [--force] [--steps 1,4-6] [--dry-run] [--keep-going] [--help]

  STUDY         a file in studies/ by name, or a path (default: miniature, which needs no network,
                token or GPU)
  --force       run again what is complete
  --steps LIST  only these steps, for example 1,4-6
  --dry-run     say what would run, and run nothing
  --keep-going  go on with the next step after a failure

Steps
   0  the models of the study (create_miniature.py, unlearn.py)
   1  parameter statistics                2  their figures
   3  the texts of the published study, where data/ has none
   4  activation norms                    5  their figures, and all comparisons side by side
   6  MLP against attention               7  null space and subspaces
   8  separation of forget and retain     9  covariance of activations
  10  MLP null-space alignment           11  row-space projection
  12  local Lipschitzness                13  linear probes, model by model
  14  relearning attack: what comes back
  15  dictionary (ITDA) of the base and its latents that moved, where the study names one
  16  the report: everything on one page

The environment, and .env, override the study:
  BASE, COMPARE (space-separated), OUTROOT, FORGET_TEXT, RETAIN_TEXT, QUESTIONS, ATTACK_TEXT, DICTIONARY,
  UNLEARN, UNLEARN_SEEDS, MAX_SAMPLES, PARAM_DEVICE, PARAM_DTYPE, ACTIVATION_DEVICE, ACTIVATION_DTYPE,
  LAUNCHER (for example "accelerate launch --num_processes 2")
Results lie under OUTROOT (outputs), one folder per comparison; logs in OUTROOT/logs.
USAGE
}

fail() {
  printf 'pipeline.sh: %s\n' "$1" >&2
  exit 2
}

# ── arguments ────────────────────────────────────────────────────────────────────────────────────

STUDY="" FORCE=0 DRY_RUN=0 KEEP_GOING=0 STEPS=""
while [ $# -gt 0 ]; do
  case "$1" in
    --force) FORCE=1 ;;
    --dry-run) DRY_RUN=1 ;;
    --keep-going) KEEP_GOING=1 ;;
    --steps) [ $# -gt 1 ] || fail "--steps needs a list such as 1,4-6"; STEPS=$2; shift ;;
    --steps=*) STEPS=${1#--steps=} ;;
    -h | --help) usage; exit 0 ;;
    -*) fail "unknown option $1 (--help lists them)" ;;
    *) [ -z "$STUDY" ] || fail "one study at a time: $STUDY or $1"; STUDY=$1 ;;
  esac
  shift
done
for part in $(printf '%s' "$STEPS" | tr ',' ' '); do
  case "$part" in
    *[!0-9-]* | -* | *- | *-*-*) fail "--steps $STEPS: write numbers and ranges, such as 1,4-6" ;;
  esac
done

# A study given by path is looked for where the command was typed.
STUDY=${STUDY:-miniature}
if [ -f "$STUDY" ]; then STUDY_FILE=$(cd "$(dirname "$STUDY")" && pwd)/$(basename "$STUDY"); fi
cd "$(dirname "$0")"
if [ -z "${STUDY_FILE:-}" ]; then STUDY_FILE=studies/${STUDY%.sh}.sh; fi
[ -f "$STUDY_FILE" ] || fail "$STUDY: no such study; there are: $(cd studies && echo *.sh)"

# ── settings: environment, then .env, then the study ─────────────────────────────────────────────

if [ -f .env ]; then
  while IFS= read -r line || [ -n "$line" ]; do
    line=${line#export }
    case "$line" in [A-Za-z_]*=*) ;; *) continue ;; esac
    key=${line%%=*} value=${line#*=}
    case "$value" in \"*\") value=${value#\"}; value=${value%\"} ;; \'*\') value=${value#\'}; value=${value%\'} ;; esac
    case "$key" in *[!A-Za-z0-9_]*) continue ;; esac
    if [ -z "${!key+set}" ]; then export "$key=$value"; fi
  done < .env
fi

SETTINGS="BASE FORGET_TEXT RETAIN_TEXT QUESTIONS ATTACK_TEXT DICTIONARY MAX_SAMPLES"
LISTS="COMPARE UNLEARN UNLEARN_SEEDS"
for key in $SETTINGS $LISTS; do
  if [ -n "${!key+set}" ]; then eval "GIVEN_$key=\${$key}"; unset "$key"; fi
done
MAKE=() COMPARE=() UNLEARN=() UNLEARN_SEEDS=()
BASE="" FORGET_TEXT=data/forget.txt RETAIN_TEXT=data/retain.txt QUESTIONS="" ATTACK_TEXT="" DICTIONARY="" MAX_SAMPLES=500
# shellcheck source=studies/miniature.sh
. "$STUDY_FILE"
for key in $SETTINGS; do
  given=GIVEN_$key
  if [ -n "${!given+set}" ]; then eval "$key=\${$given}"; fi
done
for key in $LISTS; do
  given=GIVEN_$key
  if [ -n "${!given+set}" ]; then eval "read -r -a $key <<< \"\${$given}\" || true"; fi
done
[ -n "$BASE" ] || fail "$STUDY_FILE sets no BASE"

OUTROOT=${OUTROOT:-outputs}
PAGE=$OUTROOT/report/report.html
PARAM_DEVICE=${PARAM_DEVICE:-auto} PARAM_DTYPE=${PARAM_DTYPE:-auto}
ACTIVATION_DEVICE=${ACTIVATION_DEVICE:-auto} ACTIVATION_DTYPE=${ACTIVATION_DTYPE:-auto}
read -r -a LAUNCH <<< "${LAUNCHER:-python}"
export MODEL_DIFFS_INVOCATION="${MODEL_DIFFS_INVOCATION:-$(basename "$STUDY_FILE" .sh)-$(date +%Y%m%d-%H%M%S)}"

selected() { # is step $1 asked for?
  local part
  [ -n "$STEPS" ] || return 0
  for part in $(printf '%s' "$STEPS" | tr ',' ' '); do
    if [ "$1" -ge "${part%%-*}" ] && [ "$1" -le "${part##*-}" ]; then return 0; fi
  done
  return 1
}

# ── what there is to do: one unit is one process ─────────────────────────────────────────────────

# The folder name of the base, as model_diffs.core.results.model_label gives it.
base_label() {
  local base=${BASE%/}
  case "$base" in
    ./* | /* | ../* | ~*) ;;
    *) [ -d "$base" ] || { printf '%s' "$base" | tr / _; return; } ;;
  esac
  if [ "$(basename "$base")" = unlearned_model ]; then base=$(dirname "$base"); fi
  basename "$base"
}
BASE_LABEL=$(base_label)

unlearned_folder() { # method seed
  local name=./unlearned_models/${BASE_LABEL}__$1
  [ ${#UNLEARN_SEEDS[@]} -le 1 ] || name=${name}__seed$2
  printf '%s' "$name"
}
[ ${#UNLEARN_SEEDS[@]} -gt 0 ] || UNLEARN_SEEDS=(42)

CHANGED=(${COMPARE[@]+"${COMPARE[@]}"})
UNITS=()
for script in ${MAKE[@]+"${MAKE[@]}"}; do UNITS+=("0 make $script"); done
# The texts of the published study are drawn where there are none, or where they were drawn before:
# texts of one's own are left alone. Unlearning reads them, so they come first.
if [ "$FORGET_TEXT" = data/forget.txt ] && [ "$RETAIN_TEXT" = data/retain.txt ]; then
  if [ -d data/.datasets ] || ! [ -f data/forget.txt ] || ! [ -f data/retain.txt ]; then UNITS+=(3); fi
fi
for method in ${UNLEARN[@]+"${UNLEARN[@]}"}; do
  for seed in "${UNLEARN_SEEDS[@]}"; do
    UNITS+=("0 unlearn $method $seed")
    CHANGED+=("$(unlearned_folder "$method" "$seed")")
  done
done
[ ${#CHANGED[@]} -gt 0 ] || fail "$STUDY_FILE compares the base with nothing: set COMPARE or UNLEARN"
for step in 1 2 4 5 "5 together" 6 7 8 9 10 11 12 13 "14 together"; do UNITS+=("$step"); done
if [ -n "$DICTIONARY" ]; then
  # A dictionary that the study says how to train is made here; any other has to be there.
  if [ -n "${DICTIONARY_ARGUMENTS:-}" ]; then UNITS+=("15 train"); fi
  UNITS+=(15)
fi
UNITS+=("16 together")

# Sets SCRIPT and ARGUMENTS of a unit, for the changed models that follow.
unit_command() {
  local unit=$1 extra
  shift
  # shellcheck disable=SC2086  # a unit is split into its words on purpose
  set -- $unit -- "$@"
  local step=$1 kind=${2:-}
  ARGUMENTS=()
  case "$step $kind" in
    "0 make") SCRIPT=$3 ;;
    "0 unlearn")
      SCRIPT=unlearn.py
      ARGUMENTS=(--model "$BASE" --method "$3" --seed "$4" --outdir "$(unlearned_folder "$3" "$4")"
        --forget-data "$FORGET_TEXT" --retain-data "$RETAIN_TEXT")
      [ -z "$QUESTIONS" ] || ARGUMENTS+=(--questions "$QUESTIONS")
      extra=UNLEARN_$3
      # shellcheck disable=SC2206
      ARGUMENTS+=(${!extra:-})
      ;;
    "5 together")
      SCRIPT=plot_side_by_side.py
      ARGUMENTS=(--model-a "$BASE" --model-b "${CHANGED[@]}" --outroot "$OUTROOT")
      ;;
    "14 together")
      SCRIPT=relearn.py
      ARGUMENTS=(--models "$BASE" "${CHANGED[@]}" --base "$BASE" --outroot "$OUTROOT"
        --forget-data "$FORGET_TEXT" --retain-data "$RETAIN_TEXT"
        --device "$ACTIVATION_DEVICE" --dtype "$ACTIVATION_DTYPE")
      [ -z "$QUESTIONS" ] || ARGUMENTS+=(--questions "$QUESTIONS")
      [ -z "$ATTACK_TEXT" ] || ARGUMENTS+=(--attack-data "$ATTACK_TEXT")
      ;;
    "15 train")
      SCRIPT=train_itda.py
      # shellcheck disable=SC2206  # what the study says comes last, so that it decides
      ARGUMENTS=(--model "$BASE" --outdir "$DICTIONARY" --dataset "$FORGET_TEXT" "$RETAIN_TEXT"
        --max-samples "$MAX_SAMPLES" --device "$ACTIVATION_DEVICE" --dtype "$ACTIVATION_DTYPE"
        ${DICTIONARY_ARGUMENTS})
      ;;
    "16 together")
      SCRIPT=report.py
      ARGUMENTS=(--model-a "$BASE" --model-b "${CHANGED[@]}" --outroot "$OUTROOT")
      ;;
    "3 --" | "3 ") SCRIPT=create_datasets.py ;;
    *)
      shift 2
      comparison_command "$step" "$@"
      ;;
  esac
  extra=STEP_${step}_ARGUMENTS
  # shellcheck disable=SC2206
  if [ "$step $kind" != "15 train" ]; then ARGUMENTS+=(${!extra:-}); fi
  if [ "$FORCE" = 1 ]; then ARGUMENTS+=(--force); fi
}

comparison_command() { # step changed… (step 13: models)
  local step=$1
  shift
  if [ "$step" = 13 ]; then ARGUMENTS=(--model "$@"); else ARGUMENTS=(--model-a "$BASE" --model-b "$@"); fi
  ARGUMENTS+=(--outroot "$OUTROOT")
  case "$step" in
    1) ARGUMENTS+=(--device "$PARAM_DEVICE" --dtype "$PARAM_DTYPE") ;;
    7 | 10) ARGUMENTS+=(--device "$PARAM_DEVICE") ;;
    4 | 8 | 9 | 11 | 12 | 13)
      ARGUMENTS+=(--forget-text "$FORGET_TEXT" --retain-text "$RETAIN_TEXT")
      ARGUMENTS+=(--max-samples "$MAX_SAMPLES" --device "$ACTIVATION_DEVICE" --dtype "$ACTIVATION_DTYPE")
      ;;
  esac
  case "$step" in
    1) SCRIPT=collect_param_stats.py ;;
    2) SCRIPT=plot_param_stats.py ;;
    4) SCRIPT=collect_activation_norms.py ;;
    5) SCRIPT=plot_activation_norms.py ;;
    6) SCRIPT=analyze_mlp_vs_attn.py ;;
    7) SCRIPT=null_space_analysis.py ;;
    8) SCRIPT=activation_separation_analysis.py ;;
    9) SCRIPT=activation_covariance_analysis.py ;;
    10) SCRIPT=mlp_nullspace_alignment.py ;;
    11) SCRIPT=row_space_projection_analysis.py ;;
    12) SCRIPT=local_lipschitzness_analysis.py ;;
    13)
      SCRIPT=linear_probe_analysis.py
      [ -z "$QUESTIONS" ] || ARGUMENTS+=(--questions "$QUESTIONS")
      ;;
    15)
      SCRIPT=diff.py
      ARGUMENTS+=(--itda "$DICTIONARY" --dataset "$FORGET_TEXT" "$RETAIN_TEXT")
      ARGUMENTS+=(--max-samples "$MAX_SAMPLES" --device "$ACTIVATION_DEVICE" --dtype "$ACTIVATION_DTYPE")
      ;;
  esac
}

launcher_of() { # the steps that compute may run on several processes; the others draw
  case "$SCRIPT" in
    unlearn.py | collect_* | row_space_*) RUN=(uv run --no-sync "${LAUNCH[@]}") ;;
    *) RUN=(uv run --no-sync python) ;;
  esac
}

# ── states: one Python process for all that is asked ─────────────────────────────────────────────

TAB=$(printf '\t')
# Prints step, label, status, model_b, folder and reason of each folder of the units given.
states_of() {
  local unit
  for unit in "$@"; do
    if [ "$unit" = 13 ]; then unit_command 13 "$BASE" "${CHANGED[@]}"; else unit_command "$unit" "${CHANGED[@]}"; fi
    set -- "$unit" "$SCRIPT" ${ARGUMENTS[@]+"${ARGUMENTS[@]}"}
    (IFS=$TAB; printf '%s\n' "$*")
  done | uv run --no-sync python -m model_diffs.pipeline.planning
}

ROWS=()
row() { ROWS+=("$1$TAB$2$TAB$3$TAB${4:--}"); } # a field is never empty: `set` would drop it

finish() {
  local status=$1 line
  printf '\n%-5s %-62s %-8s %8s\n' step comparison result seconds
  for line in ${ROWS[@]+"${ROWS[@]}"}; do
    # shellcheck disable=SC2086
    (IFS=$TAB; set -f; set -- $line; printf '%-5s %-62s %-8s %8s\n' "$1" "$2" "$3" "${4#-}")
  done
  if [ "$status" = 0 ]; then printf '\nResults: %s\n' "$OUTROOT"; fi
  if [ "$DRY_RUN" = 0 ] && selected 16 && [ -f "$PAGE" ]; then printf 'Page:    %s\n' "$PAGE"; fi
  exit "$status"
}

seconds_in() { sed -n 's/^  "seconds": \([0-9.]*\).*/\1/p' "$1/run.json" 2>/dev/null | tail -1; }

# ── start ────────────────────────────────────────────────────────────────────────────────────────

command -v uv > /dev/null || fail "uv is not installed: pip install uv"
# Each step is a process of its own: without cached bytecode each would compile torch anew.
unset PYTHONDONTWRITEBYTECODE
if [ ! -d "${UV_PROJECT_ENVIRONMENT:-.venv}" ]; then echo "setting up the environment (.venv) with uv, once …"; fi
if [ -z "${UV_NO_SYNC:-}" ]; then uv sync --quiet || fail "uv sync failed: run it to see why"; fi

device="auto (cpu)"
if command -v nvidia-smi > /dev/null && nvidia-smi -L > /dev/null 2>&1; then device="auto (cuda)"; fi
if [ "$(uname)" = Darwin ]; then device="auto (mps)"; fi
if [ "$ACTIVATION_DEVICE" != auto ]; then device=$ACTIVATION_DEVICE; fi
printf 'study:   %s (%s)\nbase:    %s\n' "$(basename "$STUDY_FILE" .sh)" "$STUDY_FILE" "$BASE"
printf 'changed: %s\n' "${CHANGED[@]}"
printf 'device:  %s\n' "$device"

mkdir -p "$OUTROOT/logs" 2>/dev/null || fail "$OUTROOT cannot be written: set OUTROOT"
if [ "$DRY_RUN" = 0 ]; then
  # Held by this shell alone and not handed to its children, so it ends when the shell does.
  exec 9> "$OUTROOT/.lock"
  if command -v flock > /dev/null; then
    flock -n 9 || fail "another pipeline is running on $OUTROOT: wait for it, or set OUTROOT"
  else
    uv run --no-sync python -c 'import fcntl; fcntl.flock(9, fcntl.LOCK_EX | fcntl.LOCK_NB)' 2>/dev/null ||
      fail "another pipeline is running on $OUTROOT: wait for it, or set OUTROOT"
  fi
fi

WANTED=()
for unit in "${UNITS[@]}"; do
  if selected "${unit%% *}"; then WANTED+=("$unit"); fi
done
[ ${#WANTED[@]} -gt 0 ] || fail "--steps $STEPS: no such step (--help lists them)"
ALL=$(states_of "${WANTED[@]}")
total=$(printf '%s\n' "$ALL" | grep -c . || true)
complete=$(printf '%s\n' "$ALL" | cut -f3 | grep -c '^complete$' || true)
printf 'done:    %s of %s results are complete\n\n' "$complete" "$total"

# ── run ──────────────────────────────────────────────────────────────────────────────────────────

# Sorts the states of a unit into TODO (changed models to pass on) and rows of what is skipped.
sort_states() {
  local unit=$1 states=$2 name label status model_b folder reason
  TODO=() TODO_FOLDERS=() TODO_LABELS=()
  while IFS="$TAB" read -r name label status model_b folder reason; do
    [ "$name" = "$unit" ] || continue
    if [ "$status" = complete ] && [ "$FORCE" = 0 ]; then
      row "${unit%% *}" "$label" skipped -
      continue
    fi
    if [ "$status" = stale ]; then printf 'step %s  %s: stale, %s\n' "${unit%% *}" "$label" "$reason"; fi
    TODO+=("$model_b") TODO_FOLDERS+=("$folder") TODO_LABELS+=("$label")
  done <<< "$states"
}

to_do() { # what a unit is about to make, in words
  case "$1" in
    "0 unlearn"*) printf '%s' "${TODO_LABELS[0]}" ;;
    *) printf '%s to do' "${#TODO[@]}" ;;
  esac
}

run_unit() {
  local unit=$1 step log started status=0 n result
  step=${unit%% *}
  if [ "$step" = 0 ]; then unit_command "$unit"; else unit_command "$unit" "${TODO[@]}"; fi
  launcher_of
  if [ "$DRY_RUN" = 1 ]; then
    printf 'step %s  would run: %s %s\n' "$step" "$SCRIPT" "${ARGUMENTS[*]-}"
    for n in "${!TODO[@]}"; do row "$step" "${TODO_LABELS[$n]}" pending -; done
    return 0
  fi
  log=$OUTROOT/logs/$(printf '%s' "${step}_${SCRIPT%.py}$(printf '%s' "${unit#* }" | grep unlearn | sed 's/unlearn//; s/ /_/g')").log
  printf 'step %-2s %s (%s)\n' "$step" "$SCRIPT" "$(to_do "$unit")"
  started=$SECONDS
  exec 8>&2
  MODEL_DIFFS_PROGRESS_FD=8 "${RUN[@]}" "$SCRIPT" ${ARGUMENTS[@]+"${ARGUMENTS[@]}"} \
    > "$log" 2>&1 9>&- < /dev/null || status=$?
  exec 8>&-
  grep '^warning' "$log" || true
  if [ "$status" != 0 ]; then
    printf 'step %s failed with status %s after %s s; the end of %s:\n' \
      "$step" "$status" "$((SECONDS - started))" "$log" >&2
    tail -15 "$log" | sed 's/^/  | /' >&2
  fi
  # What was committed before a failure counts as done.
  for n in "${!TODO[@]}"; do
    result="done"
    if [ "$status" != 0 ] && ! [ "${TODO_FOLDERS[$n]}/run.json" -nt "$OUTROOT/.lock" ]; then
      result=failed
    fi
    row "$step" "${TODO_LABELS[$n]}" "$result" "$(seconds_in "${TODO_FOLDERS[$n]}")"
  done
  return "$status"
}

trap 'printf "\ninterrupted\n" >&2; finish 130' INT
FAILED=0 CHANGED_SOMETHING=0
for unit in "${WANTED[@]}"; do
  # Until something has run, the states that were read at the start still hold.
  if [ "$CHANGED_SOMETHING" = 1 ]; then states=$(states_of "$unit"); else states=$ALL; fi
  sort_states "$unit" "$states"
  if [ ${#TODO[@]} = 0 ]; then continue; fi
  if [ "$DRY_RUN" = 0 ]; then CHANGED_SOMETHING=1; fi
  status=0
  run_unit "$unit" || status=$?
  if [ "$status" != 0 ]; then
    FAILED=1
    if [ "$KEEP_GOING" = 0 ]; then finish "$status"; fi
  fi
done
finish "$FAILED"

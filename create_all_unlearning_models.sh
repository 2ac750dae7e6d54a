#!/usr/bin/env bash
# Makes one unlearned model per method from the base of a study; what is complete is skipped.
#
#   ./create_all_unlearning_models.sh [STUDY] [--force] [--dry-run]
#
# STUDY is a file in studies/ by name, or a path (default: deep-ignorance); its [unlearn.NAME] tables
# have the settings. METHODS in the environment names some of them. One that fails does not stop the
# others; the exit status is then 1. The models go to unlearned_models/<base>__<method>.
set -euo pipefail
case "${1:-}" in
  -h | --help) sed -n '2,8s/^# \{0,1\}//p' "$0"; exit 0 ;;
  "" | -*) set -- deep-ignorance "$@" ;;
esac
exec "$(dirname "$0")/pipeline.sh" "$@" --all-methods

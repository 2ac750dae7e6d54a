# The miniature: a fictional world, two small models trained on it, and everything the pipeline does.
# It needs no network, no token and no GPU. docs/miniature.md tells what it shows.
# shellcheck shell=bash disable=SC2034  # these are read by pipeline.sh

MAKE=(create_miniature.py)
BASE=./models/miniature-base
COMPARE=(./models/miniature-filtered)
FORGET_TEXT=data/miniature/forget.txt
RETAIN_TEXT=data/miniature/retain.txt
QUESTIONS=data/miniature/questions.jsonl
ATTACK_TEXT=data/miniature/attack.txt
STEP_14_ARGUMENTS="--lr 5e-4 1e-3 --max-questions 60"
DICTIONARY=artifacts/runs/miniature-base
DICTIONARY_ARGUMENTS="--layer 3 --k 1 --fvu-threshold 0.05 --max-samples 0"
STEP_15_ARGUMENTS="--max-samples 0"

# Learning rates and weights suit 1 M parameters; docs/unlearning.md has the figures they come from.
UNLEARN=(npo rmu cb cb_lat)
UNLEARN_npo="--batch-size 16 --lr 1.5e-3 --beta 0.5"
UNLEARN_rmu="--batch-size 16 --lr 1e-3 --epochs 2 --layer-id 1,2 --alpha 3 --steering-coeff auto"
UNLEARN_cb="--batch-size 16 --lr 1e-3 --epochs 2 --layer-id 1,2 --alpha 2"
UNLEARN_cb_lat="--batch-size 16 --lr 1e-3 --epochs 2 --layer-id 1,2 --alpha 2"
# Those that are made by create_all_unlearning_models.sh alone. ga_simple is meant to break the model.
UNLEARN_ga_simple="--batch-size 16 --lr 1e-3"
UNLEARN_ga="--batch-size 16 --lr 1e-3 --retain-weight 3"
UNLEARN_grad_diff="--batch-size 16 --lr 1e-3 --forget-weight 0.3"
UNLEARN_dpo="--batch-size 16 --lr 7e-4 --beta 1"
UNLEARN_simnpo="--batch-size 16 --lr 1.5e-3 --beta 0.5"
UNLEARN_lat="--batch-size 16 --lr 1.2e-3 --layer-id 1,2 --retain-weight 2.5"

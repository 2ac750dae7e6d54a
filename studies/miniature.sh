# The miniature: a fictional world, two small models trained on it, and everything the pipeline does.
# It needs no network, no token and no GPU. docs/miniature.md tells what it shows.
# shellcheck shell=bash disable=SC2034  # these are read by pipeline.sh

MAKE=(create_miniature.py)
BASE=./models/miniature-base
COMPARE=(./models/miniature-filtered)
FORGET_TEXT=data/miniature/forget.txt
RETAIN_TEXT=data/miniature/retain.txt
QUESTIONS=data/miniature/questions.jsonl

UNLEARN=(npo rmu)
UNLEARN_npo="--epochs 2 --batch-size 16 --lr 5e-4 --beta 1"
UNLEARN_rmu="--epochs 2 --batch-size 16 --lr 1e-3 --layer-id 1,2"

# The published comparison: a model trained on everything, one trained without the hazardous texts
# from the start, and one made to forget them afterwards. Weights come from the hub; 7 B parameters
# each, so a 24 GB GPU or 32 GB of memory is wanted. The texts (WMDP-bio questions and WikiText-2) are
# drawn from the hub by step 3, unless data/forget.txt and data/retain.txt are already there.
# shellcheck shell=bash disable=SC2034  # these are read by pipeline.sh

BASE=EleutherAI/deep-ignorance-unfiltered
COMPARE=(
  EleutherAI/deep-ignorance-e2e-strong-filter
  EleutherAI/deep-ignorance-unfiltered-cb-lat
)
FORGET_TEXT=data/forget.txt
RETAIN_TEXT=data/retain.txt

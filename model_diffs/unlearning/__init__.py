"""Ten ways to make a language model forget: a method is a loss, the trainer          the training loop, the same for every method
optimizers       which weights are trained, by which optimiser; LoRA
sharding         weights divided over processes (FSDP 2)
checkpointing    the state of interrupted runs
saving           the model folder: weights, configuration, tokenizer
running          one run, from the options to a model folder
summary          model card, table of runs, report (`python -m model_diffs.unlearning.summary`)
"""

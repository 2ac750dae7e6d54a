"""Ways to make a language model forget, and their controls: a method is a loss, the trainer is the
loop; what needs no training is an edit of stored weights.

settings         options of `unlearn.py`, and what of them depends on the model
losses           what the losses share; each registers itself here under its method's name
likelihood, representation, adversarial, arithmetic, pruning, distillation      the losses
interventions    what acts on training beside the optimiser
until            training to a target accuracy
network          a model as the losses see it: states after blocks, log-probabilities of texts
reference        what the base says about the texts, computed once before training
data             which texts a step sees, for any number of processes
trainer          the training loop, the same for every method
optimizers       which weights are trained, by which optimiser; LoRA
sharding         weights divided over processes (FSDP 2)
checkpointing    the state of interrupted runs
saving           the model folder: weights, configuration, tokenizer
measuring        NLL on held-out texts and accuracy on questions, before and after
running          one run of training, from the options to a model folder
edits            changes of stored weights that need no training: noise, rounding
editing          one run of these, from the options to a model folder
summary          model card, table of runs, report (`python -m model_diffs.unlearning.summary`)
"""

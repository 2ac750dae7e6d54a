"""What a model answers: at its output and inside.

contexts     what has to be read for an answer, and what is read once
scoring      four-choice questions by the log-probability of sentences; accuracies with intervals
harness      tasks of lm-evaluation-harness; two models on the same samples
memory       what the harness needs
logit_lens   the same from the state of every layer
"""

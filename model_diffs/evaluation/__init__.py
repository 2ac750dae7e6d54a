"""What a model answers: at its output and inside.

scoring      four-choice questions by the log-probability of sentences; accuracies with intervals
logit_lens   the same from the state of every layer
"""

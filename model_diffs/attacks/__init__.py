"""Attacks that bring removed knowledge back.

material            options of the relearning attack; the texts and questions it uses
relearning          fine-tune a copy of a model on the attack texts, and measure it on the way
relearning_tables   rows, summaries and figures of what came back
recovered           measures of the signature, read from those tables
"""

"""Attacks that bring removed knowledge back.

material             options of the relearning attack; the texts of its arms, and its questions
relearning           train a model with each arm at each rate, and measure it on the way
relearning_tables    rows of what came back; the rate that is picked; the filtered model's answers
relearning_overview  one table and the figures over all models
recovered            measures of the signature, read from those tables
"""

"""Attacks that bring removed knowledge back.

material             options of the relearning attack; the texts of its arms, and its questions
runs                 result folders of an attack: the filtered model first, one folder over all
relearning           train a model with each arm at each rate, and measure it on the way
relearning_tables    rows of what came back; the rate that is picked; the filtered model's answers
relearning_overview  one table and the figures over all models
recovered            measures of the signature, read from those tables
eliciting/           attacks that do not train the model, one a file
registry             what an eliciting attack declares; found by its file's name
victim               a loaded model under attack, its weights put back afterwards
elicitation          every eliciting attack at every strength; the strength that is picked
elicitation_tables   rows of what was brought out, over the filtered model's
elicitation_overview one table and the figures over all models
worst_case           attack and strength searched for the worst case
elicited             measures of the signature, read from those tables
"""

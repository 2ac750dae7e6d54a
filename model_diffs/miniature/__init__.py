"""The embedded study: a fictional world, and two small models, one of which never saw its hazards.

world       entities, relations and facts, from a seed
corpora     training corpora, forget and retain texts, attack texts, questions
recipe      settings of the trainings
training    the tokenizer, the models and their cards
making      one model, trained, scored and saved
sae         sparse autoencoders of the base's MLP outputs
"""

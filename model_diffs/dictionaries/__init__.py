"""Dictionaries of activations: ITDA, model diffing, and formats of sparse autoencoders.

options       options of train_itda.py and diff.py
pursuit       matching pursuit over unit atoms
tensor_files  tensors from files, without running code
itda          an ITDA dictionary: encoding and its files
reading       texts as tokens, and outputs of blocks
training      ITDA training in one pass over a model
sums          sums over a model's codes, and the changes between two models
diffing       two models encoded with one dictionary
tables        table, summary and figure of a comparison
examples      page of texts in which the changed latents are active
sae           sparse autoencoders: encoding and decoding
sae_files     sparsify, SAELens and dictionary_learning formats
sae_sources   SAEs of a folder or hub repository, by layer and site
"""

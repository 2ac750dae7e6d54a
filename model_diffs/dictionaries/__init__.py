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
sae_tensors   their tensors, by the names that formats have
sae_files     formats: sparsify, SAELens, dictionary_learning
sae_scopes    formats: GemmaScope, LlamaScope
hook_points   layer and site from names
sae_sizes     what tells the SAEs of a layer apart
sae_releases  releases of SAELens, SAEs known for a model
sae_sources   SAEs of a folder, a hub repository or a release
sae_choice    which of them is for which layer, at which site
"""

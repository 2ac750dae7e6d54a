"""Dictionaries of activations: ITDA, and loaders of sparse autoencoders."""

"""Attacks that do not train the model, one a file; `registry` finds them by their names."""

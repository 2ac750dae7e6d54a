"""The mathematics of the diagnostics, weights and hidden states; a step's script calls it.

weight_results    what the weight steps share: opening, summaries, lines of figures
param_stats       step 1: norms, stable ranks and rounding of each weight change
subspaces         step 7: spectra of changes, and angles between singular subspaces
mlp_nullspace     step 10: energy of changes inside and outside the base's subspaces
row_space         step 11: inputs of MLP matrices against the row space of their change
projections       step 11: its tables
selectivity       step 11: forget over retain, averaged over matrices
activation_norms  step 4: norms of hidden states and of their differences
separation        step 8: distance of forget and retain documents
covariance        step 9: spectra of covariances over tokens
lipschitz         step 12: perturbations and gradients around a text, the head in short
jacobian          step 12: Jacobian norms around a text, of states and logits
sensitivity       step 12: one model on a sample of texts, and its change
predictions       step 17: KL divergence of next-token predictions
memory            what these steps need, before anything is loaded
probes            step 13: linear probes of the last token's state
"""

"""Statistics: intervals, classifiers and spectra.

intervals         bootstrap intervals over documents
seeds             means over models that differ in their training seed
estimates         a number with its resamples, and how two numbers differ
cross_validation  folds and resamples of two classes of documents; out-of-fold accuracy and AUC
discriminant      linear discriminant analysis with Ledoit–Wolf shrinkage
logistic          L2-regularised logistic regressions, many at once
subsample         what some texts are measured on, estimated with what all are
covariances       spectra of covariances of hidden states
spectra           singular values: the largest with an error bound, or all; ranks
"""

"""Which dimensions of a layer are active, or matter to the loss.

options     the command line of both scripts
lenses      what a dimension is: an entry of an activation, or a feature of an autoencoder
gradients   the gradient of the loss at the logits
measuring   one pass over texts: means of every dimension of every layer
saved       power, normalisation, result folders, reading them back
figures     histograms and scatter plots
running     a run of a script: read, measure, save, print
"""

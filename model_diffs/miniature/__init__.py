"""The embedded study: a fictional world, and two small models, one with a gap in it."""

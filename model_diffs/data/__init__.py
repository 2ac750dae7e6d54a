"""Texts and questions: where they come from, read and checked.

texts           splits of texts, one sample per line, encoded and batched by length
sample_sources  forget and retain samples from hub data sets and local files
text_datasets   one list of texts from a file, a folder or a hub data set
questions       four-choice questions from JSONL files
"""

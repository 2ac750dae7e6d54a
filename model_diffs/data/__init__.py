"""Texts and questions: where they come from, read and checked.

texts           splits of texts, one sample per line, encoded and batched by length
text_datasets   texts from files, folders and hub data sets, and choices of them
questions       four-choice questions from JSONL files
"""

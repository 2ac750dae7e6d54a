"""The options that train_itda.py and diff.py share. Standard library only at import."""

import argparse

from model_diffs.core import arguments
from model_diffs.data.text_datasets import WIKITEXT


def add_texts(parser: argparse.ArgumentParser) -> "argparse._ArgumentGroup":
    """Data sets and how they are read; returns the group, for what one script has alone."""
    group = parser.add_argument_group("texts")
    group.add_argument(
        "--dataset",
        nargs="+",
        default=[WIKITEXT],
        help="text files (one sample per line), folders, or org/name[:config] of the hub",
    )
    group.add_argument("--max-samples", type=arguments.natural, default=0, help="each; 0 = all")
    group.add_argument("--seq-len", type=arguments.positive_int, default=128, help="tokens a text")
    group.add_argument("--batch-size", type=arguments.positive_int, default=16)
    group.add_argument("--max-steps", type=arguments.natural, default=0, help="batches; 0 = all")
    return group

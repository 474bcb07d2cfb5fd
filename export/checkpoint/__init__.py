"""Finds and loads a GPT-2 checkpoint, from a folder or the Hub, without running any code from it.

find_checkpoint   a folder or a Hub id becomes a Checkpoint; refuses what is not GPT-2, damaged or not supported
staging           the only files that are ever read, each by its name
settings          config.json and generation_config.json: the fields that are understood
weights           the weight files, checked against the config: names, shapes, finite numbers
tokenizer         a fast tokenizer that adds nothing after a text
adapter           LoRA and its relatives, merged
"""

from export.checkpoint.checkpoint import Checkpoint, find_checkpoint

__all__ = ["Checkpoint", "find_checkpoint"]

"""A GPT-2 checkpoint: found in a folder or on the Hub, staged file by file, and loaded without running anybody's code.

find_checkpoint   a folder or a Hub id becomes a Checkpoint; what is no GPT-2, damaged or not honoured is refused here
staging           the only files that are ever read, each by its name
settings          config.json and generation_config.json, as far as they are understood
weights           which files hold them, and that they are the config's, finite and whole
tokenizer         a fast tokenizer whose prompts end where the text ends
adapter           LoRA and its relatives, merged
"""

from export.checkpoint.checkpoint import Checkpoint, find_checkpoint

__all__ = ["Checkpoint", "find_checkpoint"]

"""optimum's ORTModelForCausalLM: its own export, without attention maps and hidden states to carry along."""

import shutil
import sys
from pathlib import Path
from typing import Any

from benchmarks.peers.sides import protocol
from benchmarks.peers.sides.transformers_side import served


def prepare(checkpoint: Path, _bundle: Path, folder: Path, _precision: str) -> protocol.Facts:
    from optimum.onnxruntime import ORTModelForCausalLM

    ORTModelForCausalLM.from_pretrained(str(checkpoint), export=True, use_cache=True).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(checkpoint / name, folder)
    return {
        "folder": folder,
        "files": [path for path in folder.iterdir() if path.is_file()],
        "weights": protocol.float32_weights(checkpoint),
    }


def loaded(folder: str, threads: int) -> Any:
    import onnxruntime
    import torch
    from optimum.onnxruntime import ORTModelForCausalLM

    torch.set_num_threads(threads)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return ORTModelForCausalLM.from_pretrained(folder, use_cache=True, session_options=options)


load, first = served(loaded)

if __name__ == "__main__":
    protocol.main(sys.modules[__name__])

"""The commands of `gpt2-onnx` (or `python -m runtime`): one module per command, and what they share."""

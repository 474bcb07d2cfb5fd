"""`python -m runtime COMMAND`, installed as `gpt2-onnx`: one module a command."""

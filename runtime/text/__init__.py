"""One request without ONNX: options, prompts, tokenization, sampling, stop strings and completions."""

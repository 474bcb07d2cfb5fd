"""One request, without ONNX: options, prompt, ids, text."""

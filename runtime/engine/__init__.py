"""The engine: which texts run which ids in a step, in which slots; drafts and scores; no ONNX."""

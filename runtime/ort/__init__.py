"""ONNX Runtime as the other rooms need it: installation, sessions, placement, memory, threads."""

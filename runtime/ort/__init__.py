"""Everything that touches ONNX Runtime directly: installation, sessions, placement, memory, threads."""

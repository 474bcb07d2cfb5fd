"""An ONNX graph, and the memory that it is bound to; `decode` is what generates."""

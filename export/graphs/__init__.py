"""Builds the ONNX graphs of a bundle: reference, decode, prefill and lens."""

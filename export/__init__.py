"""Exports a GPT-2 checkpoint to a verified ONNX bundle; needs torch, transformers and onnx.

from export.pipeline import export_bundle

export_bundle("gpt2", "models/gpt2")
"""

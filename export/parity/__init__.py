"""Verifies that a bundle computes what PyTorch computes; the entry point is `verify`."""

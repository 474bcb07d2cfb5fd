"""Traces the reference graph from PyTorch: two tracers, of which one is installed, and one contract for both."""

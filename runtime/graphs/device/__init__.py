"""Decoding with state in a device's memory: caches, bound arrays, captured runs, and the graph over them."""

"""Decoding with state in a device's memory: slots, caches, bound arrays, captured runs, and the graph over them."""

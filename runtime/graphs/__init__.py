"""Runs the bundle's graphs: decode, prefill, reference and lens, with the key and value caches they are bound to."""

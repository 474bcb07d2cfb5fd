"""Weights in fewer bits: which codes stand for them, and what the codes cost."""

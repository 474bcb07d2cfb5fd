"""Proofs for `verify`: the graphs give on this machine what PyTorch gave where the bundle was made."""

"""The proof that a bundle computes what PyTorch computes; see `verify`."""

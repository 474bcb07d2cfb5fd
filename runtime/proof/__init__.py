"""What verify asks: whether the graphs say on this machine what PyTorch said where the bundle was made."""

"""What a model computes of a text, and the pictures of it."""

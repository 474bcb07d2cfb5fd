"""Writes the files of a bundle, and puts its folder in place atomically."""

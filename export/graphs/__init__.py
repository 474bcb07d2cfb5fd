"""The graphs of a bundle, and how they are written."""

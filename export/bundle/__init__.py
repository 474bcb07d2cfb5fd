"""The files of a bundle, and the folder that appears whole or not at all."""

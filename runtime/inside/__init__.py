"""Inspects what a model computes for a text: outputs, logit lens, parameter counts, plots and an HTML page."""

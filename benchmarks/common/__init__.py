"""What several studies share: options, checkpoints and bundles that are made once, turns, figures and tables."""

"""The loops over a decode graph: single texts, batches, drafting and scoring."""

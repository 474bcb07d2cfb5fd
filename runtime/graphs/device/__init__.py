"""A device whose memory holds what is under way: its arrays, caches, runs and graphs."""

"""A device whose memory holds what is under way: where it is, its arrays, caches, runs and graphs."""

"""Servers under load: callers at once, and requests that arrive at random."""

"""This runtime beside its peers, each in an environment and a process of its own."""

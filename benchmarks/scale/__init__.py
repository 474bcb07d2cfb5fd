"""Many replicas: a discrete-event simulation of them, its measured inputs, and how far it is from two live servers."""

"""This runtime beside PyTorch on one NVIDIA GPU: parity, speed, and where a step's time goes."""

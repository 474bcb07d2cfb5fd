"""ONNX Runtime itself: whether it is installed, its sessions, and what they take of this machine."""

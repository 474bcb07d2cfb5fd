"""What lies on the disk, and whether to trust it."""

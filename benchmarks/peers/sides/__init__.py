"""What the sides' processes run, each in its own environment: nothing of the other packages is imported here."""

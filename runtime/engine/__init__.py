"""Which ids run next: alone, together, drafted; and how likely a text is."""

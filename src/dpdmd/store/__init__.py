"""Files: written atomically, read with clear errors, named and verified by content."""

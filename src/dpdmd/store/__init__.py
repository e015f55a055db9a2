"""What stands on disk: files written atomically and read with clear errors, caches and hashes of their content."""

"""The cost of a run before it starts: network calls, memory, disk."""

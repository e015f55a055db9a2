"""What a training will cost, before it starts: network calls, memory, disk."""

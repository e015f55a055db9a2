"""The built-in world: scenes with a known distribution, captions, an oracle, exact metrics, and two teachers."""

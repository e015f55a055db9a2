"""Training of the teacher of the world of drawings."""

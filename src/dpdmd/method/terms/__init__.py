"""The shipped terms of an objective, one in each file."""

"""The folder of a run: recipe, log, checkpoints, trackers, signals."""

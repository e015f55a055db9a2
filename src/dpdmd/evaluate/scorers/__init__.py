"""Scorers, one in each file: from the images of a folder, and the teacher's if there are any, to `Scores`."""

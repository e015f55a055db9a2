"""One scorer a file: from a folder's images, and the teacher's if there are any, to `Scores`."""

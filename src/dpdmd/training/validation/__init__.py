"""Validation while training: images, their scores, the best students."""

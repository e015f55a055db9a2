"""Validation during training: images, their scores, the best students."""

"""Metrics of folders of images: diversity, fidelity, and the exact ones of the built-in world."""

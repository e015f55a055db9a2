"""Publish a student: export it, write its model card, upload it to the hub."""

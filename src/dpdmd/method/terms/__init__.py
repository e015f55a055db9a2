"""Objectives: short lists of terms."""

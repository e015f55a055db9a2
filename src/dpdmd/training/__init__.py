"""Distillation as a program: recipe, loop, checkpoints."""

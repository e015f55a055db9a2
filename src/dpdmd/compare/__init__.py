"""Comparisons: several arms, trained with several seeds under one budget, sampled and scored in the same way."""

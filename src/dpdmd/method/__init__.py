"""The method as functions of tensors: paths, grids, guidance, rollouts, losses, roles and terms. Imports torch only."""

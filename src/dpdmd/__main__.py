"""`python -m dpdmd`, for launchers: torchrun --nproc-per-node=2 -m dpdmd train RECIPE."""

from dpdmd.cli import main

main()

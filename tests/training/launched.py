"""The command line with the tiny family, to be started by torchrun: launched.py train RECIPE ..."""

import torch
from tiny_adapter import TinyAdapter

from dpdmd import cli
from dpdmd.models import load

if __name__ == "__main__":
    torch.set_num_threads(1)
    load.load_adapter = lambda source, loras=(): TinyAdapter()
    cli.main()

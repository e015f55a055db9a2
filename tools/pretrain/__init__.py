"""Training of the built-in teachers and of the scene features; see `python -m tools.pretrain --help`."""

"""Image quality scorers, one network per file: each maps images and their prompts to one score per image."""

"""A recipe: its keys, its TOML, and the plan that a recipe and a model resolve to."""

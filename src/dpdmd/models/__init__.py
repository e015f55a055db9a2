"""Model families: one adapter for each, and loading models, LoRAs and students."""

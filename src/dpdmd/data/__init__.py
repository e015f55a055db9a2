"""What a student is trained on: prompts, their embeddings and, for a discriminator, real images."""

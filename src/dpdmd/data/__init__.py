"""What a student is trained on: prompts."""

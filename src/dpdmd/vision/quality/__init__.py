"""How good images are, one network a file: from images and their prompts to a score of each."""

"""Sample and score folders of images: diversity, likeness to a teacher, quality."""

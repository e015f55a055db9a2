"""Networks that look at images: features, perceptual distances, quality scores."""

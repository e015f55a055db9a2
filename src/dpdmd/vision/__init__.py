"""Networks that process images: features, perceptual distances, quality scores."""

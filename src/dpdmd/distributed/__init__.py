"""Several processes: what they do together, and how networks are spread over them."""

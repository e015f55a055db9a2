"""Reports: one self-contained page from metrics, logs and folders of images."""

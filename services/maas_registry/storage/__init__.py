"""Where models, datasets and blobs are kept."""

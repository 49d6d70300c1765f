"""The rules of models, versions, aliases, datasets and blobs."""

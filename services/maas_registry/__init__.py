"""The record of models, versions, aliases and datasets, and of the bytes they are made of."""

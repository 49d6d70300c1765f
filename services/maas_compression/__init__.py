"""Compression jobs: smaller children of registered versions, with a measured report."""

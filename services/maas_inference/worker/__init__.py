"""An engine worker: one process that holds one version and computes batches that fronts send it."""

"""Training as a library: rows, objectives, the loop and its checkpoints, for every service that trains."""

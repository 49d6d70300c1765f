"""The manager: makes what rollout wants true on this machine, and tells the fronts."""

"""Serves models: a manager, a front inside Envoy, and one worker process for each loaded version."""

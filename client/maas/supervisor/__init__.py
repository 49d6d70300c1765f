"""Runs a whole cluster on one machine: starts its processes, starts them again when they end, stops them in order."""

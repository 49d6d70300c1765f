"""Holds what should be served: deployments, their versions and weights, and the record of who changed them."""

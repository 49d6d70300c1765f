"""The front door: one port for everything. Envoy carries the requests; this process tells it where they go."""

"""Trains models on registered data and registers the result. The service itself knows no torch: its steps do."""

"""What the gateway says to others: Envoy's resources, xDS, health, reflection, metrics."""

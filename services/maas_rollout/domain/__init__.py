"""The rules of deployments, and what replicas say of them."""

"""What a process of the cluster is made of."""

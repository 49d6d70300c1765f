"""The wire: requests in, resources out."""

"""What an operator does to a whole registry: check it, and move it to other stores."""

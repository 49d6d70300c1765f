"""Kill harness; written when the search has landed."""

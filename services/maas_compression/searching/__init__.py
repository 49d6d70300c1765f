"""The search for the recipe that meets stated limits best; every trial is a process of its own."""

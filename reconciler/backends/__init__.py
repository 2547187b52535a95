"""Where a disk lives: each backend can observe a chain and run a step on it."""

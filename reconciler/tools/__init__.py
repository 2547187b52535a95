"""The outside world: one module per tool, each with one reason to exist."""

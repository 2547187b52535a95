"""Plain values of the field: images, chains, steps, plans, errors.  No I/O."""

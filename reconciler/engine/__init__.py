"""Look, act, look again: observing whole specs, applying plans, and the state file."""

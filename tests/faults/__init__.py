"""Faults made for real: the process dies, the power goes."""

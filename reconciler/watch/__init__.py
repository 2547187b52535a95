"""Watching: any event or clock tick leads to one full pass of plan and apply."""

"""The command line: commands, reports, progress."""

"""Two runs, a gate, an exit code."""

"""Summaries to W&B, and whole runs as often as one likes. Nothing that W&B does may cost a measurement."""

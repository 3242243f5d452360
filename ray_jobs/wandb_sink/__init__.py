"""Sends summaries and whole runs to W&B, safely repeated. W&B must never cost a measurement."""

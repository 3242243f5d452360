"""Finished runs as one HTML page that needs nothing else, or as Markdown, CSV and JSON."""

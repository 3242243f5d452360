"""Finished runs as one self-contained HTML page, or as Markdown, CSV and JSON."""

FORMATS = ("html", "markdown", "csv", "json")

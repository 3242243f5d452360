"""Profiles of one call: its phases, its operators, its share of Python."""

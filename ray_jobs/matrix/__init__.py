"""The meaning of launches: a row for each variant, and classes of hardware."""

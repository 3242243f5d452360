"""What launches mean: a row for each variant, and classes of hardware."""

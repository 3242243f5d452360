"""One launch, in PyTorch and NumPy alone."""

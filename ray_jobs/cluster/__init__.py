"""The matrix on a Ray cluster: stations, the order of their trials, remote tasks. Ray is imported here alone."""

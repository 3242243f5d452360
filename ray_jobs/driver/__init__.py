"""The job of a run: from a spec to trials, through the cluster, to a finished run directory."""

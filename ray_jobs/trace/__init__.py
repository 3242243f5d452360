"""Where a reply's time goes: Chrome traces, operators side by side, and the cluster's own timeline."""

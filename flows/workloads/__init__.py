"""Built-in workloads: examples that a user copies."""

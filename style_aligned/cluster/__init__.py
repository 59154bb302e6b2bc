"""Many machines: workers of a Ray cluster that draw for a set."""

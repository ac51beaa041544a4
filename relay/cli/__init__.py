"""The operator's desk: the only place that wires parts together. One file per group of commands."""

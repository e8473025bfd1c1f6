"""A plan on this machine: made, run by local processes, told as events."""

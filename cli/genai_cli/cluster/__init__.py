"""Commands that work on a cluster instead of this machine."""

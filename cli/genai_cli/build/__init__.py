"""Builds on this machine, from the command line's options to the summary."""

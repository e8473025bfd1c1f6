"""Spec and model facts in, graph of tasks out. No input or output of its own."""

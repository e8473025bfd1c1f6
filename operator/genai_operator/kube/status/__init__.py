"""Statuses of our own kinds: conditions, the writer, Events."""

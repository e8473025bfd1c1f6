"""Beginnings of texts whose keys and values are there already, in memory and on disk."""

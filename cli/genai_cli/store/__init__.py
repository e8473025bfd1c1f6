"""Entries of a store: listed, copied out, checked, collected."""

"""A source model as it lies on disk."""

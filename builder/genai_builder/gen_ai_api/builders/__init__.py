"""A builder for each backend."""

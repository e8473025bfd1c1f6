"""One stage by itself."""

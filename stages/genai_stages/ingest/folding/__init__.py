"""A source graph at fixed sizes, with everything folded that then is known."""

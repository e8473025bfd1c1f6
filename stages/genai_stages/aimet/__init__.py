"""AIMET encodings: one internal form, a reader for each version."""

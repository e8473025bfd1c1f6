"""The positional part of a source, looked at far out."""

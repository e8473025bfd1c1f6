"""Custom resource definitions of the kinds."""

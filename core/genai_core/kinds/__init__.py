"""The resource kinds that users write."""

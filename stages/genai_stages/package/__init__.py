"""A container's own files beside the model."""

"""What runs a container."""

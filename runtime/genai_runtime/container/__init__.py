"""A container's folder: opened, verified, shown, and run by the backend that it is built for."""

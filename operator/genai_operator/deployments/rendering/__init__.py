"""A deployment as objects of Kubernetes. Pure."""

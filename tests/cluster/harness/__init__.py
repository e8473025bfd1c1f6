"""A real Kubernetes on one machine, for tests and by hand: see tests/cluster/README.md."""

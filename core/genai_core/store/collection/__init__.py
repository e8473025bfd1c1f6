"""Leases of builds, and the gc that waits for them."""

"""Containers on this machine: described, run, served, given adapters."""

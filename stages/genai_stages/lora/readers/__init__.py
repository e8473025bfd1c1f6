"""Readers of adapters, one module a form: each gives an `Adapter`."""

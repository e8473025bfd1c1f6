"""Builders, containers and executors of language models."""

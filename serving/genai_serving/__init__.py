"""Serves containers: a scheduler, an engine that owns the slots, and OpenAI's API in front."""

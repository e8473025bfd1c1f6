"""Conversations as text: templates, rendered in processes without environment."""

"""Snapdragon's Hexagon tensor processor."""

"""The apiserver: its client, the watch cache, conditions, Events."""

"""The apiserver: what is used of it, requests to it, its answers."""

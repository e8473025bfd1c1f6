"""The JSON files of a container: manifest, report, adapters, and their version rule."""

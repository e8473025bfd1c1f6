"""From a source model of any exporter to the core graph."""

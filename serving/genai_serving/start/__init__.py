"""From options to a server that may be asked."""

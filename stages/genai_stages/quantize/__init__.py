"""Encodings put on graphs: QDQ for a device, simulated for a check."""

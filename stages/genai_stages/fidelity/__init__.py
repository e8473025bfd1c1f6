"""The yardstick of a quantized build: the source itself, in float or simulated."""

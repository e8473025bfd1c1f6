"""Snapdragon on x86: the vendor's emulator, metadata reader and Genie, in child processes."""

"""Sources of a build: their addresses, their files by role, and what is asked about them once."""

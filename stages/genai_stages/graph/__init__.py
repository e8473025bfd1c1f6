"""The core graph on disk, and what every later stage builds graphs with."""

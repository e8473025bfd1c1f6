"""Static graphs of one AR x CL: their parts, and their heads."""

"""`genai build --remote`: a build in the cluster, from this machine's files to its result."""

"""The web page of `genai dashboard`: builds, deployments and stores of a cluster, only read."""

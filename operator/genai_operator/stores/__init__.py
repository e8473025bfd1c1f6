"""ArtifactStore: opened, tried, looked into, cleaned."""

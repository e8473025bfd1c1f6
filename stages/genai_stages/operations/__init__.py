"""One module an operation: orchestration only."""

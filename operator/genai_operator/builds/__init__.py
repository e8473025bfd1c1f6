"""GenAIBuild: one pass at a time over each, its plan run as Jobs, its status."""

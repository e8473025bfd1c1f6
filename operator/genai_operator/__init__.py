"""GenAIBuild in a cluster: watch, plan, run tasks as Jobs, report."""

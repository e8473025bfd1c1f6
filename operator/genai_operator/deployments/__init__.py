"""GenAIDeployment."""

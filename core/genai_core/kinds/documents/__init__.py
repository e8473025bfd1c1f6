"""From YAML to kinds: documents with their places, what is wrong with them, in the user's words."""

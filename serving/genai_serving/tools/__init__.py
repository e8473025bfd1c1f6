"""What a chat answer says beside its text: calls of tools, and thoughts."""

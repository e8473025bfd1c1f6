"""What clients ask: chat and completions, read, answered and spoken as a stream."""

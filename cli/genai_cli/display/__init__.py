"""What people and programs read of a build: text, JSON, a board, a page."""

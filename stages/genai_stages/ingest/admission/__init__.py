"""What a source has to be: its inputs by their use, and refusals in the user's words."""

"""Pictures in prompts: decoded, brought to an encoder's pixels, and put in their places."""

"""The command genai."""

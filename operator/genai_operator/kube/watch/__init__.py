"""What the watches delivered, and what that wakes."""

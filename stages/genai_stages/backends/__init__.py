"""What differs between targets."""

"""What each tensor of a folded graph is in the core graph's terms."""

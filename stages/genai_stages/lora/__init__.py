"""LoRA adapters: read in every form that users have them, and laid onto the core graph."""

"""A task: its file, its key, its record, and chains of tasks."""

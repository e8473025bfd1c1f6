"""What is next for a build: its plan, looked up and judged; the Jobs of the tasks that start."""

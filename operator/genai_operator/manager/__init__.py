"""The process: its start, the watches' handlers, the work queue, the Lease, health."""

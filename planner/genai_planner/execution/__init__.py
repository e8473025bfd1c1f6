"""A build as it runs: what has ended, what may start next, what that reads."""

"""Parts of a build that have configurations of their own."""

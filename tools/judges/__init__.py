"""Outside judges: programs of others that say whether what we write and serve is right."""

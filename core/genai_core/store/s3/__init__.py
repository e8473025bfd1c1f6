"""A store behind S3, and models in buckets."""

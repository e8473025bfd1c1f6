"""Where artifacts live: blobs by digest, records by key, in a directory or behind S3."""

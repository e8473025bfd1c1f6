"""What ingest writes, and the comparison with the source that it was made from."""

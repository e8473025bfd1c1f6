"""Encoders of pictures: what they say of themselves, held against the model that reads them."""

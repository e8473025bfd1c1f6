"""Calls to servers of others: which addresses, for how long, one file over https."""

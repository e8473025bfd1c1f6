"""One attention, recognized by what it computes."""

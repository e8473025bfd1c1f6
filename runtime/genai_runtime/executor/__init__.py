"""Rows and slots: what every executor takes and yields, and the checks that it owes."""

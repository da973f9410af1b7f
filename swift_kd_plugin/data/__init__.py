"""Rows in, rows out: pairs, mixes and checks of training data. No torch, nothing of the host."""

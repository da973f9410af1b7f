"""Rows in, rows out: pairs, mixes and checks of training data. Standard library only."""

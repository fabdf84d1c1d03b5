"""Scores over whole splits, and the record of results."""

"""Runs that are there: found, compared, ranked, cleaned up. Imports nothing heavy, so that listings answer at once."""

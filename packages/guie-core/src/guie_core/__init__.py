"""Entries, plugins, experiments, profiles and runs of guie, and its command line."""

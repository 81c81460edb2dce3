"""Sweeps: one experiment with several values of its settings, each a run of its own, ranked by selection."""

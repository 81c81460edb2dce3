"""From data sets to a manifest."""

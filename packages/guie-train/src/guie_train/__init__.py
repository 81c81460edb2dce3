"""Stages, recipes, evaluation and reports: trains a universal image embedding."""

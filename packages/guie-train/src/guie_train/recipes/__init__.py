"""Recipes: stages in order."""

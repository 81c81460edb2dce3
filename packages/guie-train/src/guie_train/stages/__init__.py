"""The stages that recipes are made of."""

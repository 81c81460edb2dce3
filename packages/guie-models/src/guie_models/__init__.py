"""Preprocessing, backbones, heads, losses, embedders and export for image embeddings."""

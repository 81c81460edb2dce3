"""From raw downloads to a manifest, and from a manifest to uint8 images."""

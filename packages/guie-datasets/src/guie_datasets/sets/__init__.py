"""Data sets: generic ones for one's own images, and those of the 5th-place recipe as their archives hold them."""

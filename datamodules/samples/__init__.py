"""Embedded corpora that this project wrote itself, with the seeded generators that made them."""

"""Regularisers, one file a formula; they go with every technique."""

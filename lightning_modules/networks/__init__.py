"""Networks that the techniques train."""

"""Classification losses, one file a formula."""

"""What the claims of conf/experiment/claims say of their runs: a file a claim."""

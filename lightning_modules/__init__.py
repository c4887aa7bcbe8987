"""The techniques: one LightningModule a file."""

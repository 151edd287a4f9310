"""LightningDataModules and the samples they make."""

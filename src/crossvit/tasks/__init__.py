"""LightningModules, one for each thing that is trained."""

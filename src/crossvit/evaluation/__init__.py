"""Evaluators: each runs a trained model over one test set and answers with measurements for the table."""

"""Loss terms: for each a pure function and a thin Module that holds its settings. No Lightning, no model, no data."""

"""Where a run's figures go, for what Lightning's own loggers leave open."""

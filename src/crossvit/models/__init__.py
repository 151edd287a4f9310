"""The network: modules that take modules and numbers, and know neither a config nor a loss."""

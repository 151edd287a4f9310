"""One short file a command. They alone, with `config` and `stages`, see a config."""

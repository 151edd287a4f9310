"""What a dataset is found to hold, and what is wrong with it: counts, damage, duplicates, leaks between splits, texts, labels."""

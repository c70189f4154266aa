"""Following a run while it trains: progress on the terminal or in the log, its metrics file, Weights & Biases by choice."""

"""Run records, the laws behind them, and what is drawn from them. Nothing here imports Lightning."""

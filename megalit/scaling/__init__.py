"""Run records and what is drawn from them. Nothing here imports Lightning."""

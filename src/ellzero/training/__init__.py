"""Training: the plan of a run, the loop of its epochs, its state and checkpoints."""

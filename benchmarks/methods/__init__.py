"""Training methods side by side: what accuracy they reach, and what a training step costs."""

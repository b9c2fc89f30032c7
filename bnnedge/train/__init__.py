"""The training loop and what it leaves behind: schedules, metrics, checkpoints, run folders."""

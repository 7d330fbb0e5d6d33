"""What surrounds the stages while they train: runs, checkpoints, metrics, progress."""

"""The training loop with its checkpoints, data feed, monitor, distributed training and prediction."""

"""The training loop with its checkpoints, data feed, logging, distributed training and prediction."""

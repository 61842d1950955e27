"""Networks, losses, label-transition matrices and random forests."""

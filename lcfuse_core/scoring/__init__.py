"""Accuracy measures, confidence intervals, areas, the protocol, the identity of data, the ledger and the claims."""

"""Accuracy measures, confidence intervals, the evaluation protocol, the ledger of results and the claims."""

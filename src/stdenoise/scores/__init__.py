"""Scores on tensors: what the metrics compute, without any AnnData."""

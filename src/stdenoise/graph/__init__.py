"""Sparse spatial graphs: construction from coordinates, and products on tensors."""

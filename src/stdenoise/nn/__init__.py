"""Layers and likelihoods shared by the methods."""

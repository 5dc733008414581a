"""Numerics without AnnData and without layers."""

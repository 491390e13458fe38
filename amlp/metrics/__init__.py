"""Scores of masks and of patches, and how sure of them we can be; no knowledge of models."""

"""Scores of trained models on a split: per-case tables, summaries with intervals, thresholds, overlays."""

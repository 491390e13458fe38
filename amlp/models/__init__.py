"""Encoder, masked autoencoder, segmenter, and how they are stored."""

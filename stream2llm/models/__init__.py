"""The local model cache: fetches and converts models."""

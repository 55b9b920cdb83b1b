"""Traces, replay and reports."""

"""Traces, replay, simulation, reports and the demo."""

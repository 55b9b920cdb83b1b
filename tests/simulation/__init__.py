"""Deterministic simulation of the cluster's control and session logic; see docs/simulation.md."""

"""The cluster in virtual time: production decisions, and a clock that costs move.

Session table, planner, policies, victims, preemption, CPU KV offload pool and placement are those of a
running cluster, imported. Made up are time, arrivals and block counters. What
that leaves out: docs/benchmarks.md.
"""

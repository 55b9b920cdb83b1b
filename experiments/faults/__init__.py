"""Random faults on a live cluster under load: what its sessions see of them.

plan     when, on which process, which signal; from a seed          parts   the processes there are
strike   sends the signals                                          load    crawls and vector searches
report   sessions, restarts and delays to tables                    command composition
"""

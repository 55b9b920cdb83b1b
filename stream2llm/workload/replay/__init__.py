"""Traces replayed in open loop against a live cluster, through our own client.

plan      a trace to sessions that are ready to be sent      errors   codes to count by
session   one session: every event when it is due            driver   all of them, and the lag
lateness  of a session's events, and whose fault it is
lag       how late the event loop itself is                  metrics  pages of metrics to samples
scrape    metrics of workers, once a second                  run      composition: a RunRecord
display   what a person sees meanwhile

Open loop: an event is submitted when the trace says so, however slow the
system is. What it cannot take at once makes the event late, and is recorded.
"""

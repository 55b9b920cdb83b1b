"""Traces replayed in open loop against a live cluster, through our own client.

plan      a trace to sessions that are ready to be sent
session   one session: every event when it is due            driver   all of them, and the lag
lateness  of events and of the event loop; whose fault       metrics  pages of metrics to samples
scrape    metrics of workers, once a second                  run      composition: a RunRecord
display   what a person sees meanwhile

Open loop: an event is submitted when the trace says so, however slow the
system is. What it cannot take at once makes the event late, and is recorded.
"""

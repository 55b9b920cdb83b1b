"""Traces of streamed-context workloads: one JSONL format, generators, importers, fits.

format     what a trace is made of          check     what must hold beyond types
read       a file to sessions               write     sessions to a file
targets    the published quantiles          quantiles a distribution from quantiles
plan       lengths and times of sessions    layout    documents and events of one
generate   sessions of a published shape    text      sentences for token counts
measure    the sizes of any trace           fit       both compared
arrivals   when sessions come               imports   shared by the importers:
crawler_csv, anns_traces                    what the paper's artifact recorded
requests_csv, mooncake_jsonl                public recordings of requests, both by `requests`
"""

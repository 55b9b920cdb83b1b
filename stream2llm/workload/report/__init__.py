"""Runs to figures: wherever a RunRecord comes from, this sums it up, compares it and draws it.

statistics  percentiles of many values     summary    a run in numbers
save        records to files and back      as_json    names of `vllm bench serve`
intervals   bootstrap of a ratio           compare    systems against each other
lateness    whether the generator kept up  markdown   tables
series      the points of the plots        plots      matplotlib figures
page        one HTML page of all of it     write      all of it into a folder

Nothing here knows a cluster, gRPC or a clock. Only `plots` needs matplotlib,
and is imported when something is drawn.
"""

from stream2llm.workload.report.as_json import summary_to_json
from stream2llm.workload.report.compare import Comparison, compare
from stream2llm.workload.report.intervals import RatioInterval, Verdict, ratio_interval
from stream2llm.workload.report.lateness import lateness_warning
from stream2llm.workload.report.markdown import comparison_table, report_markdown, summary_table
from stream2llm.workload.report.save import load_run, save_run
from stream2llm.workload.report.statistics import PERCENTILES, Distribution, distribution
from stream2llm.workload.report.summary import Summary, latencies, summarize
from stream2llm.workload.report.write import write_report

__all__ = [
    # numbers
    "PERCENTILES",
    "Distribution",
    "Summary",
    "distribution",
    "latencies",
    "lateness_warning",
    "summarize",
    # comparing
    "Comparison",
    "RatioInterval",
    "Verdict",
    "compare",
    "ratio_interval",
    # written down
    "comparison_table",
    "load_run",
    "report_markdown",
    "save_run",
    "summary_table",
    "summary_to_json",
    "write_report",
]

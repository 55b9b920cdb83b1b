"""vLLM engines for prefill and decode workers, on CPU and GPU."""

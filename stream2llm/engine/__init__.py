"""What prefill and decode workers need of vLLM, on CPU and GPU."""

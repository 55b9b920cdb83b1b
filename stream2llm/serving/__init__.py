"""Common parts of all servers, one room for each kind of knowledge. No vLLM."""

"""Common parts of all servers: actor shell, specs, gRPC and metrics servers, clock. No vLLM."""

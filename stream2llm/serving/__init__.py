"""What every component needs to serve: actor shell, specs, gRPC and metrics servers, clock. No vLLM."""

"""Parts of gRPC servers, and what a router's health service answers."""

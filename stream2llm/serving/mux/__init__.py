"""Many calls in one gRPC stream: both ends of MultiplexService."""

"""OpenAI's HTTP API in front of the routers, of which it is a client.

    request -> parameters checked by name -> prompt and sampling -> router (gRPC)
    router's events -> OpenAI's objects: one answer, or server-sent events

A chat goes to a router as messages, so that its contents are text there as on gRPC. Only for
streamed context (`lanes`), and to see whether a prompt ends the model's reasoning, does a gateway
render and tokenize. Knows no worker, and of vLLM its parsers alone, where they are configured.
"""

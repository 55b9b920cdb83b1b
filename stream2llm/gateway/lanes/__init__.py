"""Streamed context in the form of OpenAI's Responses API, over a WebSocket or plain HTTP.

    response.create -> request (checked by name) -> state: which response it continues
        -> the whole conversation as tokens -> what of them the lane's session does not have
        -> a session at a router: append or update, and the seal where an answer is asked for

A lane is a line of responses, of which each continues the one before, and at most one
session. What a lane remembers is the conversation; its session can be opened anew from it.
Renders and tokenizes with the router's own parts, so that what a client writes stays text.
"""

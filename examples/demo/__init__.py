"""`make demo`: one question asked three ways on a cluster of its own."""

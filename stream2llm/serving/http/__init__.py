"""Parts of HTTP servers, metrics pages, and requests to servers of ours."""

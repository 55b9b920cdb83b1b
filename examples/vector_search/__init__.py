"""A vector search whose list is refined while the first results are prefilled, in update-mode."""

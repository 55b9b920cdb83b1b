"""What routers and workers share about sessions: ids, common prefixes, tenants' shares, checks."""

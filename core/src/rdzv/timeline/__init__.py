"""A run as one page, from the logs of its nodes: what ``rdzv timeline`` shows."""

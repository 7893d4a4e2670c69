"""rdzv-redis: a rendezvous on Redis and Valkey."""

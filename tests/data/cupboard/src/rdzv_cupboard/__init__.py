"""A rendezvous in a folder."""

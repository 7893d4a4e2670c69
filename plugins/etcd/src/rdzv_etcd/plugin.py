"""What this distribution tells the core."""

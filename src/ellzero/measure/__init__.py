"""What a network costs: bytes, multiply-adds, and measured latency."""

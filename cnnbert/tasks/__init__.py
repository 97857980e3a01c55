"""What a network is trained to do."""

"""What a teacher says of response tokens: the local model's or a server's."""

"""`swift-kd`: one file per subcommand."""

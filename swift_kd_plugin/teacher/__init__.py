"""Teacher signals: what a teacher says about the tokens of a response, and how two views of it are matched."""

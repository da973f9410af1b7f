"""Teacher outputs: what a teacher says about the tokens of a response, and whose tokens they are."""

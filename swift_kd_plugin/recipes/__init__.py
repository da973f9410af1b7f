"""Training as a file: keys become the flags of `megatron rlhf`, and sections become stages that follow one another."""

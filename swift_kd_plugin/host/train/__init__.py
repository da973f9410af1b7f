"""The trainer and its step: loss inputs, loss, metrics, checkpoints, memory."""

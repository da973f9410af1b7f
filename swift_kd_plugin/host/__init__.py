"""The only folder that subclasses, patches or reaches into swift, megatron or mcore_bridge."""

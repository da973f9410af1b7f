"""Who writes the responses of a generation cycle, and with which engine."""

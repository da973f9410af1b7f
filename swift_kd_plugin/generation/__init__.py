"""Who writes a response: engines that answer prompts, and rows that are written, checked, chosen and stored."""

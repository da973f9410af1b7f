"""A sample as tokens in both views, and how their response tokens are matched."""

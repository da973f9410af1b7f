"""Clients of model servers (`vllm serve`, `swift deploy`): routes, retries, checks. HTTP only."""

"""Files of settings: read as mappings, their keys held against types. No torch."""

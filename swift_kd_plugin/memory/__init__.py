"""What a rank's memory goes to, by arithmetic from plain numbers. No torch."""

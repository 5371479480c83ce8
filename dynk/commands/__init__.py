"""What `python -m dynk` runs."""

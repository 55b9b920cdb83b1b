"""What was measured, and how: `python -m experiments` lists it. Not in the wheel."""

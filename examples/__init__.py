"""Examples; the demo first."""

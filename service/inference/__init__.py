"""From image files and arrays to predictions and decisions. No HTTP."""

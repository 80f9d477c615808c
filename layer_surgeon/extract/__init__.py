"""CUT: a plan known before the first byte, a checked copy, a layer artifact. No torch."""

"""Runs a package's servable behind one Protocol, and measures it; serving and compression use the same code."""

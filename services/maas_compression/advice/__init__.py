"""Advice: which recipes suit this model, on this host, within these limits, and what was measured to say so."""

"""Models from elsewhere made into packages, and packages into what others read; run as a program of its own."""

"""What source and result are measured and judged by."""

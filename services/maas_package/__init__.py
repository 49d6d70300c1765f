"""What a stored model is: a manifest, weights, servables, and how text becomes tensors."""

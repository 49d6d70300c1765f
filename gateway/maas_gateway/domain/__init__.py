"""What the gateway knows, in its own words: no Envoy, no gRPC, no input or output."""

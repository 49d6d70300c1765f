"""The inference front: an ASGI application in Envoy that decodes, queues, batches and answers; it never computes."""

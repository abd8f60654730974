"""WebSocket, HTTP and image-stream endpoints."""

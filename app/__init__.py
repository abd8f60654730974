"""StreamDiffusion Backend: real-time image generation for many users at once."""

"""Training of the embedded model: pictures drawn by a program, a tiny autoencoder, a small UNet."""

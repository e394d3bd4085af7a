"""Export: a trained model into a bundle. One folder per target."""

"""What happens before training: patches, flags, and checks of models, files and layouts."""

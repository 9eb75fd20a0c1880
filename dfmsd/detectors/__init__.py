"""torchvision detectors: built, tapped at their features, saved, and read from foreign files."""

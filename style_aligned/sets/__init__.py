"""A set of images in a folder."""

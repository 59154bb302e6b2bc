"""A set of images in a folder that grows: what it has, what is missing, its contact sheet. No terminal in it."""

"""The drawings that the embedded model is trained on: one picture of many concepts in eight styles.

Emoji artwork serves because several foundries drew the same concepts. `sources` gets the artwork, `concepts` says what
is drawn and what it is called, `styles` how it is drawn, `captions` what a caption says of it, and `prepare` is the
command that writes the data set.
"""

"""What draws: the families of models, their text encoders and solvers, real weights and the embedded model."""

"""The page in the browser: a face over `style_aligned.sets`, as the command line is."""

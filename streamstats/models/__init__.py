"""Models from where people have them: capture layer inputs, apply corrections."""

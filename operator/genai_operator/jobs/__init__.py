"""Jobs of tasks: how they are written, what their pods' endings mean, what holds them up."""

"""One small module of facts a model family."""

"""Configuration, controller, supervision, Ray."""

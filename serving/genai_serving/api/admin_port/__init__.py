"""An administrator's port: adapters at run time, and what a deployment declares."""

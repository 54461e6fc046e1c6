//! Checkpoint files: bytes to names, shapes and types.

//! Configuration from the environment and a file.

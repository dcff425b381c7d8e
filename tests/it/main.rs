//! Integration tests.

mod arch;

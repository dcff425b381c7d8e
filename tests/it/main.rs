//! Integration tests: the parts of the product against the VPC in a box.

#![allow(missing_docs, reason = "tests document themselves by their names")]

#[cfg(test)]
mod cloud;

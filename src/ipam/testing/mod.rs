//! Tests of the whole: a small world around the pool, scenarios in it, and random interleavings.

mod ec2;
mod growth;
mod model_check;
mod oracle;
mod survival;
mod world;

//! The real pool in virtual time: one node against models of EC2, IMDS, the kernel, the disk and the runtime.
//!
//! A run is a function of a script and a seed. The script is a value made up front ([`profile`]), so that a failing run
//! can be made smaller ([`shrink`]) and read ([`script`], [`trace`]). [`node`] knows nothing of EC2, [`cloud`] nothing of
//! nodes; [`world`] drives both.

mod acting;
pub mod action;
pub mod agenda;
pub mod cloud;
pub mod count;
pub mod dice;
pub mod disk;
pub mod fleet;
pub mod imds;
pub mod kernel;
pub mod node;
mod oracle;
pub mod profile;
pub mod script;
pub mod seeds;
pub mod shrink;
pub mod trace;
pub mod truth;
pub mod upstream;
pub mod weather;
pub mod words;
pub mod world;

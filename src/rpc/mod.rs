//! The local protocol between the plugins and the daemon: NUL-terminated JSON over a unix stream socket.
//!
//! The framing is varlink's (<https://varlink.org/Method-Call>), so standard tools can talk to the daemon. One
//! request per connection; [`types`] says what is said, [`frame`] how it is written, [`client`] is the plugins'
//! blocking side without tokio, [`server`] the daemon's side.

pub mod client;
pub mod frame;
pub mod retry;
pub mod server;
pub mod types;

#[cfg(test)]
mod tests;

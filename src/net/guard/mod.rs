//! News that something of ours may not be in the kernel any more, and who did it.
//!
//! What is ours is not kept here: whoever is told compares with what it wants and puts right what differs. So news is
//! coarse, and news too many costs a look.

mod author;
mod filter;
mod limit;
mod news;
mod settings;
mod watch;

pub use author::Author;
pub use limit::{Limiter, Verdict};
pub use news::Sighting;
pub use settings::SettingsWatch;
pub use watch::{Watch, Woken};

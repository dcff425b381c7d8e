//! Being told to stop.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tracing::info;

/// SIGTERM and SIGINT, told to whoever asks.
pub(super) struct Stop {
    told: watch::Receiver<bool>,
}

impl Stop {
    /// Begins to listen for them.
    pub(super) fn watch() -> io::Result<Self> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let (tell, told) = watch::channel(false);
        tokio::spawn(async move {
            first(&mut terminate, &mut interrupt).await;
            info!("told to stop; finishing what is in flight");
            tell.send_replace(true);
            // Kept open: a closed channel would read as a signal nobody sent.
            std::future::pending::<()>().await;
        });
        Ok(Self { told })
    }

    /// Resolves once told.
    pub(super) async fn told(&mut self) {
        if self.told.wait_for(|told| *told).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// The same, for somebody else.
    pub(super) fn signal(&self) -> impl Future<Output = ()> + Send + 'static {
        let mut told = Self {
            told: self.told.clone(),
        };
        async move { told.told().await }
    }
}

async fn first(one: &mut Signal, other: &mut Signal) {
    tokio::select! {
        _ = one.recv() => {}
        _ = other.recv() => {}
    }
}

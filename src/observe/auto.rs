//! journald, or stderr without it; found out by the first line there is to log.
//!
//! A plugin that has nothing to say, which is nearly every one, then does without the socket and the probing datagram.

use std::fmt;
use std::sync::OnceLock;

use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Subscriber};
use tracing_subscriber::layer::{Context, Layer};
use tracing_subscriber::registry::LookupSpan;

use super::layer::{Output, Sink};

/// `journalctl AWS_CNI_POD=…` finds what concerns a pod.
const FIELD_PREFIX: &str = "AWS_CNI";

/// The layer.
pub(super) struct Auto {
    applet: String,
    place: OnceLock<Place>,
}

impl fmt::Debug for Auto {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // tracing-journald's layer has no Debug.
        f.debug_struct("Auto")
            .field("applet", &self.applet)
            .finish_non_exhaustive()
    }
}

enum Place {
    Journal(tracing_journald::Layer),
    Stderr(Output),
}

impl Auto {
    pub(super) fn new(applet: &str) -> Self {
        Self {
            applet: applet.to_owned(),
            place: OnceLock::new(),
        }
    }

    fn place(&self) -> &Place {
        self.place.get_or_init(|| match tracing_journald::layer() {
            Ok(journal) => Place::Journal(
                journal
                    .with_syslog_identifier(self.applet.clone())
                    .with_field_prefix(Some(FIELD_PREFIX.to_owned())),
            ),
            Err(_) => Place::Stderr(Output { sink: Sink::stderr() }),
        })
    }
}

impl<S> Layer<S> for Auto
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        match self.place() {
            Place::Journal(layer) => layer.on_new_span(attributes, id, context),
            Place::Stderr(layer) => layer.on_new_span(attributes, id, context),
        }
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        match self.place() {
            Place::Journal(layer) => layer.on_record(id, values, context),
            Place::Stderr(layer) => layer.on_record(id, values, context),
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        match self.place() {
            Place::Journal(layer) => layer.on_event(event, context),
            Place::Stderr(layer) => layer.on_event(event, context),
        }
    }
}

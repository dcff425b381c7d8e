//! The `tracing` layer: collects the fields of an event and of the spans around it and hands them to a sink.

use std::io::{IsTerminal, Write};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use tracing::span::{Attributes, Id, Record as SpanRecord};
use tracing::{Event, Subscriber};
use tracing_subscriber::layer::{Context, Layer};
use tracing_subscriber::registry::LookupSpan;

use super::file::LogFile;
use super::record::{Fields, Record};

/// Where records end up.
#[derive(Debug)]
pub(super) enum Sink {
    Stderr {
        colours: bool,
    },
    Stdout,
    File(Mutex<LogFile>),
    #[cfg(test)]
    Memory(std::sync::Arc<Mutex<Vec<Record>>>),
}

impl Sink {
    /// Coloured where somebody watches and does not mind.
    pub(super) fn stderr() -> Self {
        let colours = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        Self::Stderr { colours }
    }

    /// Nothing can be done, and nobody told, when a log cannot be written; working on is right.
    fn write(&self, record: &Record) {
        let now = SystemTime::now();
        match self {
            Self::Stderr { colours } => {
                std::io::stderr()
                    .write_all(record.line(now, *colours).as_bytes())
                    .unwrap_or_default();
            }
            Self::Stdout => std::io::stdout()
                .write_all(record.line(now, false).as_bytes())
                .unwrap_or_default(),
            Self::File(file) => {
                let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
                file.write(&record.line(now, false)).unwrap_or_default();
            }
            #[cfg(test)]
            Self::Memory(records) => records.lock().unwrap().push(record.clone()),
        }
    }
}

/// The layer.
#[derive(Debug)]
pub(super) struct Output {
    pub(super) sink: Sink,
}

impl<S> Layer<S> for Output
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let mut fields = Fields::default();
        attributes.record(&mut fields);
        if let Some(span) = context.span(id) {
            span.extensions_mut().insert(fields);
        }
    }

    fn on_record(&self, id: &Id, values: &SpanRecord<'_>, context: Context<'_, S>) {
        if let Some(span) = context.span(id)
            && let Some(fields) = span.extensions_mut().get_mut::<Fields>()
        {
            values.record(fields);
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut fields = Fields::default();
        for span in context
            .event_scope(event)
            .into_iter()
            .flat_map(tracing_subscriber::registry::Scope::from_root)
        {
            if let Some(of_span) = span.extensions().get::<Fields>() {
                for (name, value) in &of_span.0 {
                    fields.set(name, value.clone());
                }
            }
        }
        event.record(&mut fields);
        let message = fields
            .take("message")
            .unwrap_or_else(|| event.metadata().name().to_owned());
        self.sink.write(&Record {
            level: *event.metadata().level(),
            message,
            fields,
        });
    }
}

//! What the commit thread does when the journal alone does not do: the checkpoint, and repairing what stands in its
//! way.

use std::collections::VecDeque;
use std::sync::Arc;

use super::copy;
use super::engine::{Engine, EngineError};
use super::failure::Failure;
use super::journal::Journal;
use super::layout;
use super::mirror::Mirror;
use super::open::{build, engine_error};
use super::record;
use super::scan::{head, scan};
use super::writer::{Change, Writer};
use super::{Condition, OpenError, ballast};

impl Writer {
    /// Makes everything durable in sled and in the copy, the backlog, too, and begins the journal anew. In this
    /// order: until the copy is in place, the journal is needed for it.
    pub(super) fn checkpoint(&mut self) -> Result<(), Failure> {
        self.write_to_sled()?;
        let mirror = self.with_backlog();
        let mut written = self.write_copy(&mirror);
        if written.as_ref().is_err_and(OpenError::is_disk_full) {
            self.spend_ballast();
            written = self.write_copy(&mirror);
        }
        written.map_err(Failure::from_repair)?;
        self.journal
            .begin(mirror.generation)
            .map_err(layout::io_error("write", &self.layout.journal()))
            .map_err(Failure::from_repair)
    }

    /// Makes sled durably have what the journal has, and the backlog, repairing what stands in the way.
    pub(super) fn write_to_sled(&mut self) -> Result<(), Failure> {
        let outcome = self.attempt_sled();
        match &outcome {
            Ok(()) => {
                self.unapplied.clear();
                self.applied = self.generation;
                if self.behind.take().is_some() {
                    self.shared.health().condition = self.condition_by_ballast();
                }
            }
            Err(failure) => {
                let condition = match failure.condition() {
                    // There is the journal's room yet.
                    Condition::DiskFull => Condition::ReserveSpent,
                    other => other,
                };
                self.shared.health().condition = condition.clone();
                self.behind = Some(condition);
            }
        }
        outcome
    }

    fn attempt_sled(&mut self) -> Result<(), Failure> {
        if self.engine.is_none() {
            self.reopen_or_rewrite()?;
        }
        let Err(error) = self.write() else {
            return Ok(());
        };
        if error.is_disk_full() {
            self.spend_ballast();
        }
        self.reopen_or_rewrite()?;
        self.write().map_err(Failure::from)
    }

    fn write(&mut self) -> Result<(), EngineError> {
        let Some(engine) = &self.engine else {
            return Err(EngineError::Earlier("the database is closed".into()));
        };
        // Where both have a key, the backlog is the later and a batch takes the last.
        let records = self.unapplied.iter().chain(&self.backlog).map(|(key, change)| {
            let value = change.value.as_ref();
            let record = value.map(|value| record::encode(key, change.generation, value));
            (key.clone().into_bytes(), record)
        });
        let written = engine.apply(records.chain(std::iter::once(head(self.generation, self.entries))));
        if let Err(error) = &written {
            self.unsynced |= matches!(error, EngineError::Sync(_));
            // After any error every later call on this database fails, too.
            if let Some(engine) = self.engine.take() {
                engine.close();
            }
        }
        written
    }

    fn with_backlog(&self) -> Mirror {
        let mut mirror = self.shared.mirror().clone();
        mirror.generation = self.generation;
        for (key, Change { value, .. }) in &self.backlog {
            match value {
                Some(value) => drop(mirror.entries.insert(key.clone(), Arc::clone(value))),
                None => drop(mirror.entries.remove(key)),
            }
        }
        mirror
    }

    fn write_copy(&self, mirror: &Mirror) -> Result<(), OpenError> {
        let _files = self.shared.files();
        let path = self.layout.copy();
        copy::write(&path, mirror).map_err(layout::io_error("write", &path))?;
        let mut health = self.shared.health();
        health.copied = mirror.generation;
        health.copy_error = None;
        Ok(())
    }

    fn spend_ballast(&self) {
        let _files = self.shared.files();
        if ballast::release(&self.layout.ballast()) {
            self.shared.health().condition = Condition::ReserveSpent;
        }
    }

    pub(super) fn condition_by_ballast(&self) -> Condition {
        if ballast::is_there(&self.layout.ballast(), self.options.ballast_bytes) {
            Condition::Healthy
        } else {
            Condition::ReserveSpent
        }
    }

    fn reopen_or_rewrite(&mut self) -> Result<(), Failure> {
        if self.unsynced {
            return self.rewrite();
        }
        match self.reopen() {
            Err(error) if error.is_environment() => Err(error.into()),
            Err(_) => self.rewrite(),
            Ok(()) => Ok(()),
        }
    }

    /// Opens the database again and makes sure that everything written to it is still there.
    fn reopen(&mut self) -> Result<(), EngineError> {
        let engine = Engine::open(self.layout.dir(), self.options.cache_bytes)?;
        let found = scan(&engine);
        match found {
            Ok(found) if found.head.is_some_and(|head| head >= self.applied) => {
                self.engine = Some(engine);
                Ok(())
            }
            Ok(_) => {
                engine.close();
                Err(EngineError::WentBack)
            }
            Err(error) => {
                engine.close();
                Err(error)
            }
        }
    }

    /// Makes a new database, with a copy and an empty journal, from what is durable, and sets the old one aside.
    fn rewrite(&mut self) -> Result<(), Failure> {
        let mirror = self.shared.mirror().clone();
        let _files = self.shared.files();
        build(&self.layout, &self.options, &mirror).map_err(Failure::from_repair)?;
        let path = self.layout.journal();
        self.journal = Journal::open(&path, VecDeque::new(), mirror.generation)
            .map_err(layout::io_error("open", &path))
            .map_err(Failure::from_repair)?;
        self.unapplied.clear();
        self.applied = mirror.generation;
        self.shared.health().copied = mirror.generation;
        // Records nobody could read are in the old database only.
        let gone = std::mem::take(&mut self.doubtful);
        let lost = gone.iter().filter(|key| !self.backlog.contains_key(*key)).count();
        self.entries = self.entries.saturating_sub(lost);
        self.unsynced = false;
        let engine = Engine::open(self.layout.dir(), self.options.cache_bytes)
            .map_err(|source| Failure::from_repair(engine_error(&self.layout, source)))?;
        self.engine = Some(engine);
        Ok(())
    }
}

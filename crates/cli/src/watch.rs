//! Everybody who watches a migration: the screen, the record, and tests that stop it somewhere.

use std::fs::File;
use std::io::LineWriter;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use whimbrel_engine::summary::{JsonLines, Received, Summary};
use whimbrel_engine::{Observer, Phase, Progress, ResidualProgress, Round};
use whimbrel_kernel::namespace::stop_self;

use crate::exit::refused;
use crate::screen::Screen;

/// The name of a phase at whose beginning the program stops itself, so that tests can kill it or cut its link there.
const PAUSE_AT: &str = "WHIMBREL_PAUSE_AT";

/// All of them.
pub struct Watch {
    screen: Screen,
    record: Option<JsonLines<LineWriter<File>>>,
    pause_at: Option<Phase>,
}

impl Watch {
    /// With a record if a file for it is named. The file is made now, so that it does not fail later.
    pub fn new(record: Option<&Path>) -> anyhow::Result<Self> {
        let create = |path: &Path| {
            let file =
                File::create(path).with_context(|| format!("cannot write the record {}", path.display()));
            file.map(|file| JsonLines::new(LineWriter::new(file)))
                .map_err(|e| refused(format!("{e:#}")))
        };
        Ok(Self {
            screen: Screen::new(),
            record: record.map(create).transpose()?,
            pause_at: pause_at()?,
        })
    }

    /// The last line of a record at the source.
    pub fn moved(&mut self, summary: &Summary) {
        self.screen.finish();
        if let Some(record) = &mut self.record {
            record.moved(summary);
        }
    }

    /// The last line of a record at the destination, or of one of several.
    pub fn received(&mut self, received: &Received) {
        self.screen.finish();
        if let Some(record) = &mut self.record {
            record.received(received);
        }
    }

    /// The last line of a record that tells a failure.
    pub fn failed(&mut self, sentence: &str) {
        self.screen.finish();
        if let Some(record) = &mut self.record {
            record.failed(sentence);
        }
    }

    /// Tells if the record could not be written: the migration did not stop for that.
    pub fn close(self) {
        if let Some(Err(e)) = self.record.map(JsonLines::finish) {
            eprintln!("whimbrel: the record is not complete: {e}");
        }
    }
}

fn pause_at() -> anyhow::Result<Option<Phase>> {
    let Ok(name) = std::env::var(PAUSE_AT) else {
        return Ok(None);
    };
    name.parse()
        .map(Some)
        .map_err(|e| refused(format!("{PAUSE_AT}={name}: {e}")))
}

impl Observer for Watch {
    fn begun(&mut self, phase: Phase) {
        self.screen.begun(phase);
        if let Some(record) = &mut self.record {
            record.begun(phase);
        }
        if self.pause_at == Some(phase) {
            self.pause_at = None;
            stop_self();
        }
    }

    fn ended(&mut self, phase: Phase, duration: Duration) {
        self.screen.ended(phase, duration);
        if let Some(record) = &mut self.record {
            record.ended(phase, duration);
        }
    }

    fn progress(&mut self, progress: &Progress) {
        self.screen.progress(progress);
        if let Some(record) = &mut self.record {
            record.progress(progress);
        }
    }

    fn residual(&mut self, progress: &ResidualProgress) {
        self.screen.residual(progress);
        if let Some(record) = &mut self.record {
            record.residual(progress);
        }
    }

    fn round(&mut self, round: &Round) {
        self.screen.round(round);
        if let Some(record) = &mut self.record {
            record.round(round);
        }
    }

    fn warning(&mut self, sentence: &str) {
        self.screen.warning(sentence);
        if let Some(record) = &mut self.record {
            record.warning(sentence);
        }
    }
}

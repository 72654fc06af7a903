//! The talk with the applications, from the first question to the word that it is over. The picture stands at the
//! head of the module above.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::time::Duration;

use super::bitmap::{ApplicationId, Change, Claim, TransferBitmap, APPLICATIONS_MAX};
use crate::migration::Scan;
use crate::pages::{PageRun, Pages, RunTooLong};

/// How long applications are waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AssistLimits {
    /// For the first answer, from the start of the migration.
    pub answer_max: Duration,
    /// For final areas. The application runs meanwhile, up to where it holds itself.
    pub prepare_max: Duration,
}

impl Default for AssistLimits {
    /// 1 s and 3 s. An enforced minor collection of 1 GiB is part of the 1.2 s that JAVMM reports as derby's downtime.
    fn default() -> Self {
        AssistLimits {
            answer_max: Duration::from_secs(1),
            prepare_max: Duration::from_secs(3),
        }
    }
}

/// How the migration ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AssistOutcome {
    /// The workload runs at the destination.
    Resumed,
    /// The workload runs on at the source.
    Abandoned,
}

/// How far the talk is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AssistPhase {
    /// First answers are awaited. A first round that begins before that ends sends what might have been skipped.
    Asking,
    /// Rounds.
    Live,
    /// Final areas are awaited.
    Preparing,
    /// The final areas are known: the workload may be frozen, or is.
    Final,
    /// It is over.
    Ended(AssistOutcome),
}

/// Something happened. What comes from applications is not believed further than their own pages go: what does not
/// fit, or comes too late, is counted and left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AssistEvent {
    /// The answer to [`AssistOrder::Ask`]. Once more later on: what the areas have become; bits are only set by that. So it
    /// serves for a walk in the frozen workload, too, where frames may have moved since the final answer.
    Areas {
        /// Who.
        application: ApplicationId,
        /// What.
        claim: Claim,
    },
    /// These pages are needed again.
    Shrunk {
        /// By whom.
        application: ApplicationId,
        /// Which.
        runs: Vec<PageRun>,
    },
    /// The answer to [`AssistOrder::Prepare`]. From here on until it is told how it ended, the application keeps its areas
    /// as they are: a word that they shrank might be under way when it is frozen.
    Final {
        /// Who.
        application: ApplicationId,
        /// Its areas, walked again.
        claim: Claim,
    },
    /// The application has ended, or cannot be reached, or wants no part in it.
    Gone {
        /// Who.
        application: ApplicationId,
    },
    /// The migration orders to freeze.
    Suspending,
    /// The workload runs at the destination, or on at the source.
    Ended(AssistOutcome),
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AssistOrder {
    /// Ask the application for its skip areas.
    Ask {
        /// Whom.
        application: ApplicationId,
    },
    /// Tell the application to make its areas final and to hold (a JVM: a minor collection, then the safepoint).
    Prepare {
        /// Whom.
        application: ApplicationId,
    },
    /// Tell the application how it ended, and that it may go on.
    Tell {
        /// Whom.
        application: ApplicationId,
        /// What.
        outcome: AssistOutcome,
    },
    /// These are skipped: [`super::facts`] for the migration.
    Mask {
        /// Pages.
        runs: Vec<PageRun>,
    },
    /// These are not skipped any more: [`crate::Event::Forgotten`] for the migration.
    Unmask {
        /// Pages.
        runs: Vec<PageRun>,
    },
    /// Wait for events, but ask again then.
    Wait {
        /// Time since the migration began.
        until: Duration,
    },
    /// Wait for events.
    Listen,
    /// The final areas are known. Freeze, and call [`Assist::final_scan`] on the last scan.
    Pause,
    /// Everybody was told.
    End,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    ToAsk,
    Asked,
    /// Has answered; its areas are skipped.
    Skipping,
    ToPrepare,
    Preparing,
    Final,
    /// Was too late.
    Ignored,
    Gone,
    Told,
}

#[derive(Clone, Copy, Debug)]
struct Application {
    stage: Stage,
    /// It knows of the migration, so it has to be told how it ended.
    addressed: bool,
}

/// The assistance of applications in one migration, which begins at time zero.
#[derive(Clone, Debug)]
pub struct Assist {
    limits: AssistLimits,
    phase: AssistPhase,
    /// Of the phases `Asking` and `Preparing`.
    deadline: Duration,
    applications: BTreeMap<ApplicationId, Application>,
    bitmap: TransferBitmap,
    /// Not ordered yet.
    mask: Pages,
    unmask: Pages,
    ignored_events: u64,
}

impl Assist {
    /// Asks these applications, of which [`APPLICATIONS_MAX`] at most take part.
    pub fn new(limits: AssistLimits, applications: &[ApplicationId]) -> Self {
        let asked = Application {
            stage: Stage::ToAsk,
            addressed: false,
        };
        let mut assist = Assist {
            limits,
            phase: AssistPhase::Asking,
            deadline: limits.answer_max,
            applications: BTreeMap::new(),
            bitmap: TransferBitmap::default(),
            mask: Pages::new(),
            unmask: Pages::new(),
            ignored_events: 0,
        };
        for &application in applications {
            if assist.applications.len() < APPLICATIONS_MAX {
                assist.applications.insert(application, asked);
            }
        }
        assist.settle();
        assist
    }

    /// How far it is.
    pub fn phase(&self) -> AssistPhase {
        self.phase
    }

    /// The pages that travel, as known now.
    pub fn bitmap(&self) -> &TransferBitmap {
        &self.bitmap
    }

    /// Events that came too late, or from an application that was not asked for them.
    pub fn ignored_events(&self) -> u64 {
        self.ignored_events
    }

    /// What to do next. All orders but `Wait`, `Listen`, `Pause` and `End` are given once.
    pub fn poll(&mut self, now: Duration) -> AssistOrder {
        self.expire(now);
        if let Some(word) = self.next_word() {
            return word;
        }
        // What is needed again first: a page that was given up by one may be claimed by another since.
        if !self.unmask.is_empty() {
            let runs = core::mem::take(&mut self.unmask).runs().collect();
            return AssistOrder::Unmask { runs };
        }
        if !self.mask.is_empty() {
            let runs = core::mem::take(&mut self.mask).runs().collect();
            return AssistOrder::Mask { runs };
        }
        match self.phase {
            AssistPhase::Asking | AssistPhase::Preparing => AssistOrder::Wait { until: self.deadline },
            AssistPhase::Live => AssistOrder::Listen,
            AssistPhase::Final => AssistOrder::Pause,
            AssistPhase::Ended(_) => AssistOrder::End,
        }
    }

    /// Takes in what happened.
    pub fn handle(&mut self, now: Duration, event: AssistEvent) {
        self.expire(now);
        match event {
            AssistEvent::Areas { application, claim } => self.areas(application, &claim),
            AssistEvent::Shrunk { application, runs } => {
                let set = self.bitmap.shrink(application, &runs);
                self.set_again(&set);
            }
            AssistEvent::Final { application, claim } => self.make_final(application, &claim),
            AssistEvent::Gone { application } => self.gone(application),
            AssistEvent::Suspending => self.suspend(now),
            AssistEvent::Ended(outcome) => self.end(outcome),
        }
        self.settle();
    }

    /// Takes the final areas out of the last scan, before the migration gets it: see [`TransferBitmap::strip`]. Without
    /// effect unless the phase is `Final`.
    ///
    /// # Errors
    /// A run that no set can hold; the scan is as it was then.
    pub fn final_scan(&self, scan: &mut Scan) -> Result<u64, RunTooLong> {
        match self.phase {
            AssistPhase::Final => self.bitmap.strip(scan),
            _ => Ok(0),
        }
    }

    fn stage(&self, application: ApplicationId) -> Option<Stage> {
        self.applications.get(&application).map(|known| known.stage)
    }

    fn set_stage(&mut self, application: ApplicationId, stage: Stage) {
        if let Some(known) = self.applications.get_mut(&application) {
            known.stage = stage;
        }
    }

    fn areas(&mut self, application: ApplicationId, claim: &Claim) {
        match self.stage(application) {
            Some(Stage::Asked) => self.set_stage(application, Stage::Skipping),
            Some(Stage::Skipping | Stage::Final) => {}
            _ => {
                self.ignored_events += 1;
                return;
            }
        }
        self.update(application, claim);
    }

    fn make_final(&mut self, application: ApplicationId, claim: &Claim) {
        if self.stage(application) != Some(Stage::Preparing) {
            self.ignored_events += 1;
            return;
        }
        self.set_stage(application, Stage::Final);
        self.update(application, claim);
    }

    fn update(&mut self, application: ApplicationId, claim: &Claim) {
        let Change { cleared, set } = self.bitmap.update(application, claim);
        self.set_again(&set);
        if self.tells_migration() {
            self.mask.union_with(&cleared);
        }
    }

    fn set_again(&mut self, pages: &Pages) {
        if self.tells_migration() {
            self.mask.subtract(pages);
            self.unmask.union_with(pages);
        }
    }

    /// After it has ordered to freeze a migration takes no facts, and needs none: the last scan decides.
    fn tells_migration(&self) -> bool {
        matches!(self.phase, AssistPhase::Asking | AssistPhase::Live)
    }

    fn gone(&mut self, application: ApplicationId) {
        let set = self.bitmap.withdraw(application);
        self.set_again(&set);
        self.set_stage(application, Stage::Gone);
    }

    fn suspend(&mut self, now: Duration) {
        if !self.tells_migration() {
            self.ignored_events += 1;
            return;
        }
        self.phase = AssistPhase::Preparing;
        self.deadline = now.saturating_add(self.limits.prepare_max);
        self.bitmap.begin_final_update();
        self.drop_masks();
        for known in self.applications.values_mut() {
            // Who has not answered yet, and is not late, can still make its areas final: a stop-and-copy freezes at once.
            if matches!(known.stage, Stage::ToAsk | Stage::Asked | Stage::Skipping) {
                known.stage = Stage::ToPrepare;
            }
        }
    }

    fn drop_masks(&mut self) {
        self.mask = Pages::new();
        self.unmask = Pages::new();
    }

    fn end(&mut self, outcome: AssistOutcome) {
        if matches!(self.phase, AssistPhase::Ended(_)) {
            self.ignored_events += 1;
            return;
        }
        self.phase = AssistPhase::Ended(outcome);
        self.bitmap = TransferBitmap::default();
        self.drop_masks();
    }

    /// Those whose time is up are ignored from now on.
    fn expire(&mut self, now: Duration) {
        if now < self.deadline {
            return;
        }
        let late: &[Stage] = match self.phase {
            AssistPhase::Asking => &[Stage::ToAsk, Stage::Asked],
            AssistPhase::Preparing => &[Stage::ToPrepare, Stage::Preparing],
            _ => return,
        };
        for known in self.applications.values_mut() {
            if late.contains(&known.stage) {
                known.stage = Stage::Ignored;
            }
        }
        self.settle();
    }

    /// Goes on if nobody has to be waited for any more.
    fn settle(&mut self) {
        let any = |stages: [Stage; 2]| self.applications.values().any(|a| stages.contains(&a.stage));
        match self.phase {
            AssistPhase::Asking if !any([Stage::ToAsk, Stage::Asked]) => self.phase = AssistPhase::Live,
            AssistPhase::Preparing if !any([Stage::ToPrepare, Stage::Preparing]) => {
                self.phase = AssistPhase::Final;
            }
            _ => {}
        }
    }

    /// The next thing that an application has to hear.
    fn next_word(&mut self) -> Option<AssistOrder> {
        let phase = self.phase;
        self.applications
            .iter_mut()
            .find_map(|(&application, known)| match (phase, known.stage) {
                (AssistPhase::Ended(_), Stage::Gone | Stage::Told) => None,
                (AssistPhase::Ended(outcome), _) => {
                    known.stage = Stage::Told;
                    known
                        .addressed
                        .then_some(AssistOrder::Tell { application, outcome })
                }
                (_, Stage::ToAsk) => {
                    known.stage = Stage::Asked;
                    known.addressed = true;
                    Some(AssistOrder::Ask { application })
                }
                (_, Stage::ToPrepare) => {
                    known.stage = Stage::Preparing;
                    known.addressed = true;
                    Some(AssistOrder::Prepare { application })
                }
                _ => None,
            })
    }
}

#[cfg(test)]
mod tests;

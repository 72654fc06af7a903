//! Says things to a machine that may lack pages.
//!
//! QEMU answers in the thread that also touches the machine's memory. If that waits for a page, nobody gets an answer before the page has come,
//! and whoever waits for the answer must not be who brings the page. So a thread of its own waits.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::mpsc::{channel, Receiver, Sender};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;
use whimbrel_kernel::pidfd;

use crate::error::{MachineError, Result};
use crate::launch::MachineResources;
use crate::machine::Machine;
use crate::qmp::QmpError;
use crate::replica::{announce, lock};

/// How long one answer is waited for until the question is asked again.
const ANSWER_MAX: Duration = Duration::from_secs(120);
/// How long disks that somebody else still has locked are waited for.
const DISKS_MAX: Duration = Duration::from_secs(60);
/// Between two attempts.
const ASK_AGAIN: Duration = Duration::from_millis(100);

/// What is said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Word {
    /// The machine runs from here on.
    Cont,
    /// It pauses.
    Stop,
    /// What can wait until it runs: neighbours are told, and its user's settings put back.
    Settle,
}

/// Everything is said in order, each until it was heard.
#[derive(Debug)]
pub(crate) struct Voice {
    words: Mutex<Sender<Word>>,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    said: Condvar,
}

#[derive(Debug, Default)]
struct State {
    unsaid: usize,
    /// Why the last word that matters was not obeyed.
    refused: Option<String>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The other end, in its thread.
struct Speaker {
    machine: Option<Arc<Mutex<Machine>>>,
    resources: MachineResources,
    ended: Arc<OwnedFd>,
}

impl Voice {
    /// For the machine behind a connection, or for one that nobody is connected to. `ended` is readable when it has ended.
    pub(crate) fn new(
        machine: Option<Arc<Mutex<Machine>>>,
        resources: &MachineResources,
        ended: &Arc<OwnedFd>,
    ) -> Result<Voice> {
        let (words, heard) = channel();
        let shared = Arc::new(Shared::default());
        let speaker = Speaker {
            machine,
            resources: resources.clone(),
            ended: Arc::clone(ended),
        };
        let theirs = Arc::clone(&shared);
        let thread = thread::Builder::new().name("voice".into());
        thread
            .spawn(move || speaker.run(&heard, &theirs))
            .map_err(MachineError::file("start", "a thread"))?;
        Ok(Voice {
            words: Mutex::new(words),
            shared,
        })
    }

    /// Comes back at once.
    pub(crate) fn say(&self, word: Word) {
        self.shared.lock().unsaid += 1;
        let words = self.words.lock().unwrap_or_else(PoisonError::into_inner);
        // Its thread lives as long as this.
        let _ = words.send(word);
    }

    /// Waits until everything was heard: true, or false if that takes longer.
    ///
    /// # Errors
    /// QEMU has refused it. That stands until it is said again and obeyed.
    pub(crate) fn wait(&self, limit: Duration) -> Result<bool> {
        let deadline = Instant::now() + limit;
        let mut state = self.shared.lock();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match (&state.refused, state.unsaid) {
                (Some(refused), 0) => return Err(MachineError::unfit(refused.clone())),
                (None, 0) => return Ok(true),
                _ if left.is_zero() => return Ok(false),
                _ => {}
            }
            let waited = self.shared.said.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Speaker {
    fn run(mut self, words: &Receiver<Word>, shared: &Shared) {
        for word in words {
            let refused = self.say(word).err();
            let mut state = shared.lock();
            state.unsaid -= 1;
            // What is only settled can wait for the user.
            if word != Word::Settle {
                state.refused = refused.map(|error| error.to_string());
            }
            shared.said.notify_all();
        }
    }

    /// Until it was heard, or nobody can hear it any more.
    fn say(&mut self, word: Word) -> Result<()> {
        while !self.is_gone() {
            match self.try_to_say(word) {
                Err(MachineError::Qmp(QmpError::Late { .. })) => {}
                // Somebody else has the monitor, or had it a moment ago.
                Err(MachineError::Qmp(
                    QmpError::Connect { .. } | QmpError::Silent { .. } | QmpError::Lost { .. },
                )) => self.machine = None,
                other => return other,
            }
            thread::sleep(ASK_AGAIN);
        }
        Ok(())
    }

    fn is_gone(&self) -> bool {
        pidfd::wait_exit(self.ended.as_fd(), Duration::ZERO).unwrap_or(true)
    }

    fn try_to_say(&mut self, word: Word) -> Result<()> {
        let machine = match &self.machine {
            Some(machine) => Arc::clone(machine),
            None => Arc::new(Mutex::new(Machine::attach(&self.resources.monitor())?)),
        };
        self.machine = Some(Arc::clone(&machine));
        let mut machine = lock(&machine);
        match word {
            Word::Cont => machine.go_on(DISKS_MAX),
            Word::Stop => Ok(machine
                .qmp
                .execute_within("stop", json!({}), ANSWER_MAX)
                .map(drop)?),
            Word::Settle => {
                announce(&mut machine)?;
                match &self.resources.settings {
                    Some(settings) => settings.restore(&mut machine.qmp),
                    None => Ok(()),
                }
            }
        }
    }
}

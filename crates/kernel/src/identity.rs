//! Which process is meant: a number alone may be another one's later.

use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::proc;

/// A process that is not mistaken for another one that got its number later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Its number in the controller's PID namespace.
    pub pid: i32,
    /// When it began, in clock ticks since boot (field 22 of /proc/PID/stat, man 5 proc).
    pub start_time: u64,
}

impl Identity {
    /// Of the process that has this number now.
    pub fn of(pid: i32) -> Result<Self> {
        Ok(Self {
            pid,
            start_time: proc::start_time_ticks(pid)?,
        })
    }

    /// Whether it still runs: neither gone, nor a zombie, nor another process.
    pub fn is_alive(&self) -> bool {
        let Ok(stat) = proc::Stat::read(self.pid) else {
            return false;
        };
        stat.start_time_ticks() == Some(self.start_time) && !matches!(stat.state, 'Z' | 'X')
    }
}

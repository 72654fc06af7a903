//! What the user sets for the time after the switch-over, and what is told of it.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use whimbrel_policy::postcopy::{Limits, Metrics, Named as Prepaging};
use whimbrel_wire::FaultTimes;

use crate::observer::micros;
use crate::summary::ResidualSummary;

/// Goals for the time after the switch-over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResidualOptions {
    /// The order of the push.
    pub prepaging: Prepaging,
    /// Bytes per second of the push; replies do not count.
    pub bandwidth_max: Option<u64>,
    /// After this the workload is held until the rest has arrived.
    pub residual_max: Option<Duration>,
    /// How long a lost destination is looked for before it is left to the user.
    pub reconnect_for: Duration,
}

/// How long a lost connection is looked for unless the user says otherwise.
pub const RECONNECT_FOR: Duration = Duration::from_secs(3600);

impl Default for ResidualOptions {
    fn default() -> Self {
        Self {
            prepaging: Prepaging::default(),
            bandwidth_max: None,
            residual_max: None,
            reconnect_for: RECONNECT_FOR,
        }
    }
}

impl ResidualOptions {
    pub(crate) fn limits(&self) -> Limits {
        Limits {
            bandwidth_max: self.bandwidth_max,
            ..Limits::default()
        }
    }
}

/// How the residual phase goes. Told several times a second.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ResidualProgress {
    /// Since the switch-over, in microseconds.
    pub elapsed_us: u64,
    /// Bytes that the destination lacked at the switch-over.
    pub pages_bytes: u64,
    /// Bytes that are not known to be there.
    pub owed_bytes: u64,
    /// Bytes put on the wire.
    pub sent_bytes: u64,
    /// Bytes per second since the switch-over.
    pub send_rate: Option<u64>,
    /// Faults that waited for the network.
    pub network_faults: u64,
    /// How long faults took.
    pub times: FaultTimes,
    /// The link is lost at this moment: why.
    pub lost: Option<String>,
}

pub(crate) fn summary(
    prepaging: &str,
    metrics: &Metrics,
    now: Duration,
    times: FaultTimes,
    reconnects: u32,
) -> ResidualSummary {
    let duration_us = micros(metrics.duration(now));
    let waited = times.threads.iter().map(|(_, times)| times.waited_us).max();
    let slowest = waited.map(|waited_us| waited_us as f64 * 100.0 / duration_us as f64);
    ResidualSummary {
        prepaging: prepaging.to_owned(),
        pages: metrics.pages,
        pages_pushed: metrics.pages_pushed,
        pages_replied: metrics.pages_replied,
        pages_zero: metrics.pages_zero,
        pages_again: metrics.pages_again,
        pages_spared: metrics.pages_spared,
        pages_faulted: metrics.pages_faulted,
        network_faults: metrics.network_faults(),
        faults_in_flight: metrics.faults_in_flight,
        faults_avoided_max: metrics.faults_avoided_max(),
        bytes_pushed: metrics.bytes_pushed,
        bytes_replied: metrics.bytes_replied,
        duration_us,
        reconnects,
        slowdown_percent: slowest.filter(|_| duration_us > 0),
        times,
    }
}

//! What is simulated, as a TOML file says it.
//!
//! ```toml
//! name = "web"
//! seed = 1
//! [memory]
//! size = "4GiB"
//! [link]
//! rate = "1Gbit/s"
//! latency = "100us"
//! [[guest.load]]
//! model = "hot-cold"
//! rate = "50MB/s"
//! [migration]
//! strategy = "precopy"
//! ```

mod check;
mod error;
mod place;
mod trace;
mod units;

use std::time::Duration;

use serde::de::IntoDeserializer;
use serde::{Deserialize, Deserializer};
use whimbrel_policy::predict::Aim;

pub use error::ScenarioError;
pub(crate) use trace::Trace;
pub(crate) use units::{Frequency, Multiple, Rate, Share, Size, Time};

/// Pages of memory at most: 256 GiB.
pub(crate) const PAGES_MAX: u64 = 64 << 20;
/// vCPUs at most.
pub(crate) const VCPUS_MAX: u32 = 256;
/// Loads, applications, and competing streams of a link at most, each.
pub(crate) const LIST_MAX: usize = 64;
/// Events at most.
pub(crate) const EVENTS_MAX: u64 = 1 << 36;

/// A scenario: everything about one simulated migration. Read with [`Scenario::parse`].
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Scenario {
    #[serde(default)]
    pub(crate) name: String,
    #[serde(default = "one")]
    pub(crate) seed: u64,
    /// Whether the outcome tells each step.
    #[serde(default)]
    pub(crate) log: bool,
    /// Between two samples of the series.
    #[serde(default = "sample_every")]
    pub(crate) sample_every: Time,
    /// The simulation ends so long after the request, finished or not.
    #[serde(default = "end")]
    pub(crate) end: Time,
    /// The simulation ends after so many events, finished or not.
    #[serde(default = "events_max")]
    pub(crate) events_max: u64,
    pub(crate) memory: Memory,
    pub(crate) link: Link,
    pub(crate) storage: Option<Storage>,
    #[serde(default)]
    pub(crate) guest: Guest,
    #[serde(default)]
    pub(crate) application: Vec<Application>,
    pub(crate) balloon: Option<Balloon>,
    #[serde(default)]
    pub(crate) host: Host,
    #[serde(default)]
    pub(crate) migration: Migration,
}

/// The guest's memory. What no load covers is content that nobody touches.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Memory {
    #[serde(deserialize_with = "units::memory_size")]
    pub size: Size,
    /// Part of the pages that are full of zeros at first, in groups of 64.
    #[serde(default)]
    pub zero: Share,
    /// Part of the memory, at its end, that nobody uses: stale content which only the guest knows to be worthless.
    #[serde(default)]
    pub free: Share,
}

/// The ordinary network.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Link {
    pub rate: Rate,
    /// One way.
    #[serde(default)]
    pub latency: Time,
    #[serde(default)]
    pub competing: Vec<Competing>,
}

/// The storage network.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Storage {
    pub rate: Rate,
    /// One way.
    #[serde(default)]
    pub latency: Time,
    /// For each read that does not follow the one before.
    #[serde(default)]
    pub seek: Time,
    #[serde(default)]
    pub competing: Vec<Competing>,
}

/// Traffic of others on a link.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Competing {
    pub rate: Rate,
    /// Since the request.
    #[serde(default)]
    pub from: Time,
    /// Since the request; for ever if it is not said.
    pub until: Option<Time>,
}

/// What runs.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Guest {
    #[serde(default = "one_vcpu")]
    pub vcpus: u32,
    /// Size of the state beside the memory.
    #[serde(default = "state")]
    pub state: Size,
    #[serde(default)]
    pub load: Vec<Load>,
}

/// How a load picks pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum ModelKind {
    /// Any page of its area, all alike.
    Uniform,
    /// One page after the other, each vCPU from a place of its own on, round and round.
    Sequential,
    /// `hot-share` of the accesses go to the first `hot` part of the area.
    HotCold,
    /// A part `set` of the area, all alike, and after each `moves-every` another one.
    MovingSet,
    /// References to `pages` pages, all alike, in an area that holds fewer, with replacement of the least recently used one: the
    /// third seed's workload (its program: 20 pages, 100 references in 0..49).
    Lru,
    /// A generational heap: see `world/heap.rs`.
    Heap,
    /// Pages of files, which equal blocks on the storage until they are written.
    PageCache,
    /// What was recorded.
    Trace,
}

impl ModelKind {
    /// As a scenario names it.
    fn word(self) -> &'static str {
        match self {
            ModelKind::Uniform => "uniform",
            ModelKind::Sequential => "sequential",
            ModelKind::HotCold => "hot-cold",
            ModelKind::MovingSet => "moving-set",
            ModelKind::Lru => "lru",
            ModelKind::Heap => "heap",
            ModelKind::PageCache => "page-cache",
            ModelKind::Trace => "trace",
        }
    }
}

/// A load: accesses of all vCPUs to an area of the memory.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Load {
    pub model: ModelKind,
    /// By which an application names it.
    #[serde(default)]
    pub name: String,
    /// Accesses of all vCPUs together. For a heap, what is allocated.
    pub rate: Option<Frequency>,
    /// Part of the accesses that write.
    #[serde(default = "all")]
    pub writes: Share,
    /// The area begins here; where the load before ends if it is not said.
    pub start: Option<Size>,
    /// Size of the area; up to the free memory if it is not said.
    pub size: Option<Size>,
    /// It ends after so many accesses of each vCPU.
    pub accesses: Option<u64>,
    /// hot-cold: the part of the area that is hot (a fifth).
    pub hot: Option<Share>,
    /// hot-cold: the part of the accesses that goes there (four fifths).
    pub hot_share: Option<Share>,
    /// moving-set: the part of the area that is in use (a tenth).
    pub set: Option<Share>,
    /// moving-set: how long it stays (10 s).
    pub moves_every: Option<Time>,
    /// lru: pages that are referred to (2.5 times as many as fit).
    pub pages: Option<u64>,
    /// lru: how long it takes to get a page from the disk (5 ms).
    pub disk: Option<Time>,
    /// heap: the young generation (a third of the area).
    pub young: Option<Size>,
    /// heap: used in the old generation at first (half of it).
    pub old_used: Option<Share>,
    /// heap: part of what was allocated that lives through a collection (5 %).
    pub survival: Option<Share>,
    /// heap: writes to the old generation.
    pub old_writes: Option<Frequency>,
    /// heap: bytes per second that a collection copies (500 MB/s).
    pub collection_rate: Option<Rate>,
    /// heap: what a collection takes beside that (5 ms).
    pub collection_fixed: Option<Time>,
    /// page-cache: part of it that lies scattered on the storage.
    pub scattered: Option<Share>,
    /// trace: a file of lines `seconds,page,r` or `seconds,page,w`, beside the scenario.
    pub file: Option<String>,
    #[serde(skip)]
    pub trace: Trace,
    /// Where it lies: first page and pages.
    #[serde(skip)]
    pub area: (u64, u64),
}

/// A program that is asked for areas that need not be sent.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Application {
    /// For whoever reads the file.
    #[serde(default)]
    #[expect(dead_code)]
    pub name: String,
    /// The load whose memory it may give away: of a heap the young generation, of others the whole area.
    pub load: String,
    #[serde(default = "yes")]
    pub answers: bool,
    /// How long it takes to answer.
    #[serde(default)]
    pub after: Time,
    /// How long its threads need to reach the safepoint.
    #[serde(default)]
    pub safepoint: Time,
}

/// Dynamic self-ballooning.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Balloon {
    /// How often free memory is looked at.
    #[serde(default = "balloon_every")]
    pub every: Time,
    /// What the guest keeps.
    pub reserve: Option<Size>,
    /// Part of the free memory that the balloon holds at the request already.
    #[serde(default)]
    pub inflated: Share,
    /// Bytes per second of free memory that the guest begins to use, from the request on.
    pub demand: Option<Rate>,
    /// How long the guest stands still for each page that it wants back.
    #[serde(default = "give_back")]
    pub give_back: Time,
}

/// What the hosts need for things.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub(crate) struct Host {
    /// For each page of the memory in a scan.
    pub scan: Time,
    pub freeze: Time,
    pub capture: Time,
    pub restore: Time,
    /// Bytes of pages per second that a core reads.
    pub read: Rate,
    /// Bytes of pages per second that a core packs.
    pub packer: Rate,
    /// What is left of a packed page.
    pub packed: Share,
}

/// The way of moving.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum StrategyKind {
    Precopy,
    Postcopy,
    Hybrid,
    Stopcopy,
    Guide,
    /// What promises most of these is chosen while pages travel already.
    Auto,
}

/// The order of the push after the switch-over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum PrePagingKind {
    Demand,
    Push,
    Bubbling,
    Guide,
}

/// Passes of hybrid before the switch-over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PassesKind {
    Exactly(u32),
    WhileProgress,
}

/// What goes over the storage network.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Teleport {
    Off,
    /// This part of the page cache: R of the second seed.
    Ratio(f64),
    /// Two ends of one list.
    Auto,
}

/// What is decided how. Limits that are not said are the policy's.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub(crate) struct Migration {
    pub strategy: StrategyKind,
    /// auto: what to save.
    pub min: Option<Aim>,
    pub prepaging: Option<PrePagingKind>,
    pub pivots: u32,
    #[serde(deserialize_with = "passes")]
    pub passes: PassesKind,
    pub downtime: Option<Time>,
    pub rounds: Option<u32>,
    /// Pre-copy does not end for want of progress, but at the limits, as in Xen.
    pub to_the_limits: bool,
    /// Multiple of the memory.
    pub traffic: Option<Multiple>,
    /// Limit on the bulk.
    pub bandwidth: Option<Rate>,
    /// The workload runs so long before the request.
    pub after: Time,
    /// Applications are asked what need not be sent (JAVMM).
    pub assist: bool,
    /// How long an application may take to answer.
    pub answer_within: Time,
    /// Heaps are collected where it pays before each snapshot (ALMA).
    pub collect: bool,
    pub snapshots: u32,
    /// How long the application's own collection is waited for before each snapshot.
    pub ride: Option<Time>,
    /// Pages that are written again before they leave are sent all the same, as from a snapshot that was copied at once.
    pub sends_rewritten: bool,
    #[serde(deserialize_with = "teleport")]
    pub teleport: Teleport,
    /// The workload is slowed down while rounds make no progress.
    pub converge: bool,
    pub packing: bool,
}

impl Default for Migration {
    fn default() -> Self {
        Migration {
            strategy: StrategyKind::Precopy,
            min: None,
            prepaging: None,
            pivots: 8,
            passes: PassesKind::Exactly(1),
            downtime: None,
            rounds: None,
            to_the_limits: false,
            traffic: None,
            bandwidth: None,
            after: Time::default(),
            assist: false,
            answer_within: Time(Duration::from_secs(1)),
            collect: false,
            snapshots: 2,
            ride: None,
            sends_rewritten: false,
            teleport: Teleport::Off,
            converge: false,
            packing: false,
        }
    }
}

impl Default for Host {
    /// 2 ns for a page in a scan, 1 ms each to freeze, capture and restore, 5 GB/s to read, 500 MB/s to pack down to 40 %.
    fn default() -> Self {
        let fixed = Time(Duration::from_millis(1));
        Host {
            scan: Time(Duration::from_nanos(2)),
            freeze: fixed,
            capture: fixed,
            restore: fixed,
            read: Rate(5_000_000_000),
            packer: Rate(500_000_000),
            packed: Share(0.4),
        }
    }
}

impl Default for Guest {
    fn default() -> Self {
        Guest {
            vcpus: one_vcpu(),
            state: state(),
            load: Vec::new(),
        }
    }
}

impl Default for Time {
    fn default() -> Self {
        Time(Duration::ZERO)
    }
}

impl Default for Share {
    fn default() -> Self {
        Share(0.0)
    }
}

fn one() -> u64 {
    1
}

fn one_vcpu() -> u32 {
    1
}

fn yes() -> bool {
    true
}

fn all() -> Share {
    Share(1.0)
}

fn state() -> Size {
    Size(512 << 10)
}

fn sample_every() -> Time {
    Time(Duration::from_millis(100))
}

fn balloon_every() -> Time {
    Time(Duration::from_secs(5))
}

fn give_back() -> Time {
    Time(Duration::from_micros(1))
}

fn end() -> Time {
    Time(Duration::from_secs(3600))
}

fn events_max() -> u64 {
    1 << 28
}

fn passes<'de, D: Deserializer<'de>>(from: D) -> Result<PassesKind, D::Error> {
    let value = toml::Value::deserialize(from)?;
    match (
        value.as_integer().and_then(|n| u32::try_from(n).ok()),
        value.as_str(),
    ) {
        (Some(passes), _) => Ok(PassesKind::Exactly(passes)),
        (_, Some("progress")) => Ok(PassesKind::WhileProgress),
        _ => Err(serde::de::Error::custom(
            "passes must be a number, or \"progress\" for as long as they help",
        )),
    }
}

fn teleport<'de, D: Deserializer<'de>>(from: D) -> Result<Teleport, D::Error> {
    use serde::de::Error;
    let value = toml::Value::deserialize(from)?;
    match (value.as_bool(), value.as_str()) {
        (Some(false), _) => return Ok(Teleport::Off),
        (_, Some("auto")) => return Ok(Teleport::Auto),
        _ => {}
    }
    Share::deserialize(value.into_deserializer())
        .map(|ratio| Teleport::Ratio(ratio.0))
        .map_err(|_: toml::de::Error| D::Error::custom("must be between 0 and 1, \"auto\" or false"))
}

impl Scenario {
    /// Reads a scenario. `file` is named in errors, and a recorded trace is looked for beside it.
    ///
    /// # Errors
    /// One sentence with the line of the first thing that is wrong.
    pub fn parse(text: &str, file: &str) -> Result<Self, ScenarioError> {
        check::checked(error::read(text, file)?, text, file)
    }

    /// Reads a scenario from what was already read as TOML, and changed meanwhile. Errors have no line, but name the key.
    ///
    /// # Errors
    /// As for [`Scenario::parse`].
    pub fn from_table(table: toml::Table, file: &str) -> Result<Self, ScenarioError> {
        check::checked(error::read_table(table, file)?, "", file)
    }

    /// Its name; the file's if it has none.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The seed of its random numbers.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Pages of the guest's memory.
    pub fn memory_pages(&self) -> u64 {
        self.memory.size.pages()
    }
}

#[cfg(test)]
mod tests;

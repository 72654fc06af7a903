//! What a scenario must keep to beyond the form of each value.

use std::path::Path;
use std::time::Duration;

use super::error::shortened;
use super::place::Places;
use super::{
    trace, Competing, Load, ModelKind, PrePagingKind, Scenario, ScenarioError, StrategyKind, Teleport,
};
use super::{Time, EVENTS_MAX, LIST_MAX, PAGES_MAX, VCPUS_MAX};

/// What a host or a network takes for one thing at most: an hour.
const COST_MAX: Duration = Duration::from_secs(3600);
/// Pages of a load that is followed use by use: 16 GiB.
const LRU_PAGES_MAX: u64 = 4 << 20;

/// The key, and what is wrong with it.
type Wrong = (String, String);

/// A wrong value of this key.
fn wrong<T>(key: impl Into<String>, sentence: impl Into<String>) -> Result<T, Wrong> {
    Err((key.into(), sentence.into()))
}

/// The scenario, with what follows from it filled in.
pub(super) fn checked(mut scenario: Scenario, text: &str, file: &str) -> Result<Scenario, ScenarioError> {
    if scenario.name.is_empty() {
        scenario.name = Path::new(file)
            .file_stem()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
    }
    complete(&mut scenario, Path::new(file)).map_err(|(key, sentence)| ScenarioError {
        file: file.into(),
        line: line_of(text, &key),
        sentence: format!("{key}: {sentence}"),
    })?;
    Ok(scenario)
}

/// The line of a key; 0 if there is no text.
fn line_of(text: &str, key: &str) -> usize {
    let path: Vec<String> = key.split('.').map(str::to_owned).collect();
    match text.is_empty() {
        true => 0,
        false => Places::of(text).line(&path),
    }
}

fn complete(scenario: &mut Scenario, file: &Path) -> Result<(), Wrong> {
    sizes(scenario)?;
    costs(scenario)?;
    links(scenario)?;
    places(scenario)?;
    for (at, load) in scenario.guest.load.iter_mut().enumerate() {
        keys_fit(at, load)?;
        sets_fit(at, load)?;
        heap_fits(at, load)?;
        read_trace(at, load, file)?;
    }
    applications(scenario)?;
    migration(scenario)
}

fn sizes(scenario: &Scenario) -> Result<(), Wrong> {
    if !(1..=VCPUS_MAX).contains(&scenario.guest.vcpus) {
        return wrong("guest.vcpus", format!("must be between 1 and {VCPUS_MAX}"));
    }
    if !(1..=EVENTS_MAX).contains(&scenario.events_max) {
        return wrong("events-max", format!("must be between 1 and {EVENTS_MAX}"));
    }
    if scenario.sample_every.0.as_micros() == 0 {
        return wrong("sample-every", "must be at least 1us");
    }
    if scenario.end.0.is_zero() {
        return wrong("end", "must be more than 0s");
    }
    Ok(())
}

fn costs(scenario: &Scenario) -> Result<(), Wrong> {
    let host = &scenario.host;
    let costs = [
        ("link.latency", scenario.link.latency),
        (
            "storage.latency",
            scenario
                .storage
                .as_ref()
                .map_or(Time::default(), |one| one.latency),
        ),
        (
            "storage.seek",
            scenario.storage.as_ref().map_or(Time::default(), |one| one.seek),
        ),
        ("host.scan", host.scan),
        ("host.freeze", host.freeze),
        ("host.capture", host.capture),
        ("host.restore", host.restore),
    ];
    match costs.iter().find(|cost| cost.1 .0 > COST_MAX) {
        Some((key, _)) => wrong(*key, "must be at most 1h"),
        None => Ok(()),
    }
}

fn links(scenario: &Scenario) -> Result<(), Wrong> {
    let storage = scenario
        .storage
        .iter()
        .map(|storage| ("storage", &storage.competing));
    for (name, competing) in storage.chain([("link", &scenario.link.competing)]) {
        if competing.len() > LIST_MAX {
            return wrong(
                format!("{name}.competing.{LIST_MAX}"),
                format!("at most {LIST_MAX} streams can compete"),
            );
        }
        let is_empty = |one: &Competing| one.until.is_some_and(|until| until.0 <= one.from.0);
        if let Some(at) = competing.iter().position(is_empty) {
            return wrong(
                format!("{name}.competing.{at}.until"),
                "`until` must be later than `from`",
            );
        }
    }
    if scenario
        .balloon
        .is_some_and(|balloon| balloon.every.0.as_millis() == 0)
    {
        return wrong("balloon.every", "must be at least 1ms");
    }
    Ok(())
}

/// One area behind the other, where nothing else is said.
fn places(scenario: &mut Scenario) -> Result<(), Wrong> {
    let used = used_pages(scenario);
    if scenario.guest.load.len() > LIST_MAX {
        return wrong(
            format!("guest.load.{LIST_MAX}"),
            format!("at most {LIST_MAX} loads"),
        );
    }
    let mut next = 0;
    for (at, load) in scenario.guest.load.iter_mut().enumerate() {
        let first = load
            .start
            .map_or(next, |start| start.0 / whimbrel_policy::PAGE_SIZE);
        let room = used.saturating_sub(first);
        let pages = load.size.map_or(room, |size| size.pages());
        if pages == 0 || pages > room {
            let sentence = format!("an area of {pages} pages from page {first} on; the memory that is not free ends at page {used}");
            return wrong(format!("guest.load.{at}.size"), sentence);
        }
        load.area = (first, pages);
        next = first + pages;
    }
    Ok(())
}

/// Pages before the free ones.
fn used_pages(scenario: &Scenario) -> u64 {
    let pages = scenario.memory_pages();
    pages - (pages as f64 * scenario.memory.free.0) as u64
}

/// Keys of one model say nothing to another.
fn keys_fit(at: usize, load: &Load) -> Result<(), Wrong> {
    use ModelKind::{Heap, HotCold, Lru, MovingSet, PageCache, Trace};
    let keys = [
        ("hot", load.hot.is_some(), HotCold),
        ("hot-share", load.hot_share.is_some(), HotCold),
        ("set", load.set.is_some(), MovingSet),
        ("moves-every", load.moves_every.is_some(), MovingSet),
        ("pages", load.pages.is_some(), Lru),
        ("disk", load.disk.is_some(), Lru),
        ("young", load.young.is_some(), Heap),
        ("old-used", load.old_used.is_some(), Heap),
        ("survival", load.survival.is_some(), Heap),
        ("old-writes", load.old_writes.is_some(), Heap),
        ("collection-rate", load.collection_rate.is_some(), Heap),
        ("collection-fixed", load.collection_fixed.is_some(), Heap),
        ("scattered", load.scattered.is_some(), PageCache),
        ("file", load.file.is_some(), Trace),
    ];
    for (key, is_said, model) in keys {
        if is_said && model != load.model {
            let (owner, this) = (model.word(), load.model.word());
            let sentence = format!("belongs to the model {owner}, and this one is {this}");
            return wrong(format!("guest.load.{at}.{key}"), sentence);
        }
    }
    if load.rate.is_none() != (load.model == Trace) {
        let sentence = match load.model {
            Trace => "a trace has its own times, and takes no rate",
            _ => "a load needs a rate, as in rate = \"50MB/s\"",
        };
        return wrong(format!("guest.load.{at}.rate"), sentence);
    }
    if load.pages.is_some_and(|pages| !(1..=PAGES_MAX).contains(&pages)) {
        return wrong(
            format!("guest.load.{at}.pages"),
            format!("must be between 1 and {PAGES_MAX}"),
        );
    }
    Ok(())
}

fn sets_fit(at: usize, load: &Load) -> Result<(), Wrong> {
    if load.moves_every.is_some_and(|every| every.0.is_zero()) {
        return wrong(format!("guest.load.{at}.moves-every"), "must be more than 0s");
    }
    if load.model == ModelKind::Lru && load.area.1 > LRU_PAGES_MAX {
        return wrong(
            format!("guest.load.{at}.size"),
            "must be at most 16GiB for this model",
        );
    }
    Ok(())
}

fn heap_fits(at: usize, load: &Load) -> Result<(), Wrong> {
    if load.model != ModelKind::Heap {
        return Ok(());
    }
    let pages = load.area.1;
    let young = load.young.map_or(pages / 3, |young| young.pages());
    if young < 10 || young + 1 > pages {
        let sentence = format!("must be between 10 pages and less than the heap, which has {pages} pages");
        return wrong(format!("guest.load.{at}.young"), sentence);
    }
    Ok(())
}

fn read_trace(at: usize, load: &mut Load, scenario: &Path) -> Result<(), Wrong> {
    if load.model != ModelKind::Trace {
        return Ok(());
    }
    let key = format!("guest.load.{at}.file");
    let Some(file) = &load.file else {
        return wrong(key, "a trace needs the file that it was recorded in");
    };
    let beside = scenario.parent().unwrap_or(Path::new("")).join(file);
    load.trace = trace::read(&beside).map_err(|sentence| (key.clone(), sentence))?;
    let pages = load.area.1;
    match load.trace.0.iter().find(|access| access.1 >= pages) {
        Some(access) => wrong(
            key,
            format!("names page {}, and the area has {pages} pages", access.1),
        ),
        None => Ok(()),
    }
}

fn applications(scenario: &Scenario) -> Result<(), Wrong> {
    if scenario.application.len() > LIST_MAX {
        return wrong(
            format!("application.{LIST_MAX}"),
            format!("at most {LIST_MAX} applications"),
        );
    }
    for (at, application) in scenario.application.iter().enumerate() {
        let named = scenario
            .guest
            .load
            .iter()
            .filter(|load| load.name == application.load)
            .count();
        if named != 1 {
            let sentence = format!(
                "{named} loads have the name `{}`; exactly one must",
                shortened(&application.load)
            );
            return wrong(format!("application.{at}.load"), sentence);
        }
    }
    Ok(())
}

fn migration(scenario: &Scenario) -> Result<(), Wrong> {
    let migration = &scenario.migration;
    if !(1..=1024).contains(&migration.pivots) {
        return wrong("migration.pivots", "must be between 1 and 1024");
    }
    if !(1..=100).contains(&migration.snapshots) {
        return wrong("migration.snapshots", "must be between 1 and 100");
    }
    if migration.teleport != Teleport::Off && scenario.storage.is_none() {
        return wrong(
            "migration.teleport",
            "needs a storage network: a section [storage] with a rate",
        );
    }
    if migration.collect && migration.rounds.is_some() {
        return wrong(
            "migration.rounds",
            "not together with collect = true, which sends one round for each of `snapshots`",
        );
    }
    let leaves_residue = !matches!(migration.strategy, StrategyKind::Precopy | StrategyKind::Stopcopy);
    if migration.prepaging.is_some() && !leaves_residue {
        return wrong(
            "migration.prepaging",
            "belongs to postcopy, hybrid, guide and auto",
        );
    }
    if migration.min.is_some() && migration.strategy != StrategyKind::Auto {
        return wrong("migration.min", "belongs to the strategy auto");
    }
    if migration.strategy == StrategyKind::Guide
        && !matches!(migration.prepaging, None | Some(PrePagingKind::Guide))
    {
        return wrong("migration.prepaging", "the strategy guide has its own order");
    }
    Ok(())
}

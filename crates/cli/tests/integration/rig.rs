//! Two hosts with the binary in them, one workload, and what every test asks of them.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::Value;
use whimbrel_testbed::{at, Builder, Finished, Host, Inventory, Relay, Running, TwoHosts, CLIENT};

/// The workload's name.
pub const NAME: &str = "w";

/// The workload's address, when it has one of its own.
pub const ADDRESS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 77, 0, 50)), 7000);

/// Where `receive` listens.
const PORT: u16 = 7440;

/// What takes longer hangs. Generous: two cores may be busy with something else.
pub const LONG: Duration = Duration::from_secs(120);

/// What stays once it was made: our directories, the record of the last move, and the directory of every JVM of a user.
const MAY_STAY: [&str; 6] = [
    "file /run/whimbrel",
    "file /run/whimbrel/machines",
    "file /run/whimbrel/journal",
    "file /run/whimbrel/workloads",
    "file /tmp/move.json",
    "file /tmp/hsperfdata_root",
];

/// A host, by its role in a test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Alpha,
    Beta,
}

impl Side {
    pub fn other(self) -> Self {
        match self {
            Self::Alpha => Self::Beta,
            Self::Beta => Self::Alpha,
        }
    }
}

/// How a move shall be made.
#[derive(Clone, Debug, Default)]
pub struct How {
    /// What moves, if not [`NAME`].
    pub workload: Option<String>,
    /// Further arguments of `migrate`.
    pub arguments: Vec<String>,
    /// Further arguments of `receive`.
    pub receive_arguments: Vec<String>,
    /// Where the source reaches the destination, if not directly.
    pub via: Option<SocketAddr>,
    /// Where the source's controller stops itself.
    pub pause_source_at: Option<&'static str>,
    /// Where the destination's controller stops itself.
    pub pause_destination_at: Option<&'static str>,
}

impl How {
    /// A silent peer is given up soon.
    pub fn impatient() -> Self {
        let arguments = ["--link-timeout", "3s"].map(str::to_string).to_vec();
        Self {
            receive_arguments: arguments.clone(),
            arguments,
            ..Self::default()
        }
    }

    /// With these arguments of `migrate`.
    pub fn with(arguments: &str) -> Self {
        Self {
            arguments: arguments.split_whitespace().map(str::to_string).collect(),
            ..Self::default()
        }
    }
}

/// Both ends of a move that is under way.
pub struct Moving {
    pub receive: Running,
    pub migrate: Running,
}

/// See the module.
pub struct Rig {
    pub hosts: TwoHosts,
    before: [Inventory; 2],
}

impl Rig {
    /// Hosts with these programs, a link of 1 Gbit/s between them; nothing runs yet.
    pub fn new(programs: &[PathBuf]) -> Self {
        Self::with(TwoHosts::builder(), programs)
    }

    /// Hosts of another kind.
    pub fn with(builder: Builder, programs: &[PathBuf]) -> Self {
        let builder = builder.program(env!("CARGO_BIN_EXE_whimbrel"));
        let hosts = programs
            .iter()
            .fold(builder, |builder, program| builder.program(program))
            .build()
            .unwrap();
        let before = hosts.inventory().unwrap();
        Self { hosts, before }
    }

    pub fn host(&self, side: Side) -> &Host {
        match side {
            Side::Alpha => &self.hosts.alpha,
            Side::Beta => &self.hosts.beta,
        }
    }

    /// Runs `whimbrel` with these arguments to its end.
    pub fn whimbrel(&self, side: Side, arguments: &str) -> Finished {
        let words = ["whimbrel"].into_iter().chain(arguments.split_whitespace());
        self.host(side).command(words).finish(LONG).unwrap()
    }

    /// Starts the workload on alpha.
    pub fn run(&self, command: &str) {
        self.run_with("", command);
    }

    /// Starts the workload on alpha with an address of its own.
    pub fn serve(&self, command: &str) {
        self.run_with(&format!("--ip {}/24", ADDRESS.ip()), command);
    }

    fn run_with(&self, options: &str, command: &str) {
        let finished = self.whimbrel(Side::Alpha, &format!("run --name {NAME} {options} -- {command}"));
        assert!(finished.success(), "whimbrel run: {finished:?}");
    }

    /// Moves the workload, which must succeed, and gives the last line of the record.
    pub fn moved(&self, from: Side, how: &How) -> Value {
        let moving = self.begin_move(from, how);
        self.arrived(from, moving)
    }

    /// Waits for the end of a move that must succeed, and gives the last line of the record.
    pub fn arrived(&self, from: Side, mut moving: Moving) -> Value {
        let source = moving.migrate.wait(LONG).unwrap();
        if !source.success() {
            let destination = moving
                .receive
                .wait(Duration::from_secs(3))
                .map(|finished| finished.output);
            let destination = destination.unwrap_or_else(|_| moving.receive.output());
            panic!(
                "migrate: {}\n{}\nreceive:\n{destination}",
                source.status, source.output
            );
        }
        let destination = moving.receive.wait(LONG).unwrap();
        assert!(
            destination.success(),
            "receive: {}\n{}",
            destination.status,
            destination.output
        );
        self.record(from)
    }

    /// What `plan` says of a workload, as JSON.
    pub fn plan(&self, from: Side, workload: &str, arguments: &str) -> Value {
        let text = self.plan_text(from, workload, &format!("--json {arguments}"));
        let json = text.find('{').map_or("", |at| &text[at..]);
        serde_json::from_str(json).unwrap_or_else(|error| panic!("{error}: {text}"))
    }

    /// What `plan` says of a workload, and of its phases. The `receive` that it asks is not used up by it, and ended.
    pub fn plan_text(&self, from: Side, workload: &str, arguments: &str) -> String {
        let (mut receive, key) = self.receive(from.other(), &How::default());
        let to = self.listens_at(from.other()).to_string();
        let words = ["whimbrel", "plan", workload, &to].into_iter();
        let command = self.host(from).command(words.chain(arguments.split_whitespace()));
        let finished = command.env("WHIMBREL_KEY", key).finish(LONG).unwrap();
        assert!(
            finished.success(),
            "whimbrel plan: {finished:?}\n{}",
            receive.output()
        );
        assert!(!receive.ended(), "receive: {}", receive.output());
        receive.interrupt().unwrap();
        receive.wait(LONG).unwrap();
        finished.output
    }

    fn listens_at(&self, side: Side) -> SocketAddr {
        SocketAddr::new(self.hosts.address_of(self.host(side)), PORT)
    }

    /// Starts `receive`, and gives its key.
    pub fn receive(&self, side: Side, how: &How) -> (Running, String) {
        let address = self.listens_at(side).to_string();
        let words = ["whimbrel", "receive", "--listen", &address].map(str::to_string);
        let words = words.into_iter().chain(how.receive_arguments.iter().cloned());
        let mut receive = self.host(side).command(words);
        if let Some(phase) = how.pause_destination_at {
            receive = receive.env("WHIMBREL_PAUSE_AT", phase);
        }
        let receive = receive.spawn().unwrap();
        let line = receive.line_with("--key ", LONG).unwrap();
        let key = line.split_once("--key ").unwrap().1;
        let key = key.split_whitespace().next().unwrap().to_string();
        (receive, key)
    }

    /// Starts both ends of a move, by pre-copy if nothing else is said.
    pub fn begin_move(&self, from: Side, how: &How) -> Moving {
        let (receive, key) = self.receive(from.other(), how);
        let address = self.listens_at(from.other());
        let reached_at = how.via.unwrap_or(address).to_string();
        let unsaid = !how.arguments.iter().any(|word| word == "--strategy");
        let precopy = ["--strategy", "precopy"].map(str::to_string);
        let fixed = [
            "whimbrel",
            "migrate",
            how.workload.as_deref().unwrap_or(NAME),
            &reached_at,
            "--json",
            "/tmp/move.json",
        ];
        let words = fixed
            .into_iter()
            .map(str::to_string)
            .chain(precopy.into_iter().filter(|_| unsaid))
            .chain(how.arguments.iter().cloned());
        let mut migrate = self.host(from).command(words).env("WHIMBREL_KEY", key);
        // What an earlier move from this host has written is not what is waited for.
        let _ = fs::remove_file(self.host(from).path("/tmp/move.json"));
        if let Some(phase) = how.pause_source_at {
            migrate = migrate.env("WHIMBREL_PAUSE_AT", phase);
        }
        Moving {
            receive,
            migrate: migrate.spawn().unwrap(),
        }
    }

    /// The last line of the record that `migrate` has written.
    pub fn record(&self, side: Side) -> Value {
        serde_json::from_str(self.record_so_far(side).lines().last().unwrap()).unwrap()
    }

    /// The record that `migrate` is writing, whole lines.
    fn record_so_far(&self, side: Side) -> String {
        let mut text = fs::read_to_string(self.host(side).path("/tmp/move.json")).unwrap_or_default();
        text.truncate(text.rfind('\n').map_or(0, |end| end + 1));
        text
    }

    /// Whether a phase of the source has come to this point, `begun` or `ended`, in the move that is under way.
    pub fn has_phase(&self, from: Side, phase: &str, point: &str) -> bool {
        let text = self.record_so_far(from);
        let events = text.lines().map(|line| serde_json::from_str(line).unwrap());
        let event = format!("phase-{point}");
        events
            .into_iter()
            .any(|line: Value| line["event"] == event.as_str() && line["phase"] == phase)
    }

    /// Waits until `migrate` has begun a phase. Fails if it ends before.
    pub fn wait_for_phase(&self, from: Side, phase: &str, moving: &mut Moving) {
        let deadline = Instant::now() + LONG;
        while !self.has_phase(from, phase, "begun") {
            assert!(!moving.migrate.ended(), "no {phase}: {}", moving.migrate.output());
            assert!(
                Instant::now() < deadline,
                "no {phase}: {}",
                moving.migrate.output()
            );
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// A relay on the way to a host, which adds `delay` in each direction. The way crosses the links of both hosts.
    pub fn relay(&self, to: Side, delay: Duration) -> Relay {
        let target = at(self.hosts.address_of(self.host(to)), PORT);
        Relay::start(&self.hosts.client, at(CLIENT, PORT), target, delay).unwrap()
    }

    /// What the workload has written, checked; see [`steps`].
    pub fn steps(&self, side: Side) -> Vec<String> {
        let finished = self.whimbrel(side, &format!("logs {NAME}"));
        assert!(finished.success(), "whimbrel logs: {finished:?}");
        steps(&finished.output).unwrap_or_else(|fault| panic!("{fault}"))
    }

    /// Waits for as many more steps, all of them right, and gives the last one.
    pub fn more_steps(&self, side: Side, count: usize) -> String {
        let goal = self.steps(side).len() + count;
        let deadline = Instant::now() + LONG;
        loop {
            let steps = self.steps(side);
            if steps.len() >= goal {
                return steps.last().unwrap().clone();
            }
            assert!(
                Instant::now() < deadline,
                "{} of {goal} steps: {:?}",
                steps.len(),
                steps.last()
            );
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Ends the workload; then nothing may be left of it anywhere.
    pub fn finish(&self, side: Side) {
        let finished = self.whimbrel(side, &format!("stop {NAME}"));
        assert!(finished.success(), "whimbrel stop: {finished:?}");
        self.nothing_left(&[Side::Alpha, Side::Beta]).unwrap();
    }

    /// Waits until these hosts are as they were before anything ran.
    pub fn nothing_left(&self, sides: &[Side]) -> Result<(), String> {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let changes: Vec<String> = sides.iter().flat_map(|&side| self.changes(side)).collect();
            if changes.is_empty() {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(format!("left behind:\n{}", changes.join("\n")));
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    fn changes(&self, side: Side) -> Vec<String> {
        let now = self.hosts.inventory().unwrap();
        let index = usize::from(side == Side::Beta);
        let changes = now[index].changes_since(&self.before[index]).into_iter();
        let counts = changes.filter(|change| !MAY_STAY.iter().any(|stays| change.get(2..) == Some(*stays)));
        counts.map(|change| format!("{side:?}: {change}")).collect()
    }

    /// What `whimbrel ps` says on both hosts, for the message of a failure.
    pub fn both_hosts(&self) -> String {
        let listed = |side| {
            let command = self.host(side).command(["whimbrel", "ps", "--all"]);
            let said = command.finish(Duration::from_secs(20));
            let said = said.map_or_else(|error| error.to_string(), |finished| finished.output);
            format!("{side:?}:\n{said}")
        };
        listed(Side::Alpha) + &listed(Side::Beta)
    }

    /// How many processes of a host have this word in their command line's first word.
    pub fn processes(&self, side: Side, program: &str) -> usize {
        let entries = fs::read_dir(self.host(side).path("/proc")).unwrap().flatten();
        let lines = entries.filter_map(|entry| fs::read(entry.path().join("cmdline")).ok());
        lines
            .filter(|line| {
                line.split(|&byte| byte == 0)
                    .next()
                    .unwrap()
                    .ends_with(program.as_bytes())
            })
            .count()
    }
}

/// A test that fails shows what there was.
impl Drop for Rig {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.both_hosts());
        }
    }
}

/// The lines `NAME N ok ...` of a workload's log. N must count from 1 on without a gap or a repetition, which proves that the
/// workload has run at one place at a time and went on from where it was. No line may begin with BAD.
pub fn steps(log: &str) -> Result<Vec<String>, String> {
    let mut steps = Vec::new();
    for line in log.lines() {
        let mut words = line.split(' ').skip(1);
        if line.contains("BAD") {
            return Err(format!(
                "the workload found: {line}\nbefore that: {:?}",
                steps.last()
            ));
        }
        let (Some(Ok(number)), Some("ok")) = (words.next().map(str::parse::<usize>), words.next()) else {
            continue;
        };
        if number != steps.len() + 1 {
            return Err(format!("step {} is followed by: {line}", steps.len()));
        }
        steps.push(line.to_string());
    }
    Ok(steps)
}

#[test]
fn steps_are_counted_and_gaps_noticed() {
    let step = |n: usize| format!("counter {n} ok pid 2\n");
    assert_eq!(
        steps(&(step(1) + "something else\n" + &step(2))).unwrap().len(),
        2
    );
    assert!(steps(&(step(1) + &step(3))).is_err());
    assert!(steps(&(step(1) + &step(1))).is_err());
    assert!(steps(&(step(1) + "BAD counter: memory\n")).is_err());
}

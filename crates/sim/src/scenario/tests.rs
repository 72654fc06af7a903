use super::*;

const SMALL: &str = "[memory]\nsize = \"4MiB\"\n[link]\nrate = \"1Gbit/s\"\n";

/// What is said of a text.
fn error(text: &str) -> String {
    Scenario::parse(text, "x.toml").unwrap_err().to_string()
}

#[test]
fn the_least_that_is_needed() {
    let scenario = Scenario::parse(SMALL, "dir/web.toml").unwrap();
    assert_eq!(
        (scenario.name(), scenario.seed(), scenario.memory_pages()),
        ("web", 1, 1024)
    );
}

#[test]
fn unknown_keys_are_named_with_those_that_are_known() {
    assert_eq!(
        error("[memory]\nsize = \"4MiB\"\n[link]\nrtae = \"1Gbit/s\"\n"),
        "x.toml:4: unknown key `rtae` in [link]; allowed: rate, latency, competing"
    );
    assert!(error("nmae = \"x\"\n")
        .starts_with("x.toml:1: unknown key `nmae` in the scenario; allowed: name, seed, "));
    assert_eq!(
        error("[memory]\nsize = \"4MiB\"\n[link]\n"),
        "x.toml:3: the key `rate` is missing in [link]"
    );
}

#[test]
fn values_that_cannot_be_are_shown() {
    let cases = [
        (
            "rate = \"-5MB/s\"",
            "x.toml:4: rate = \"-5MB/s\": a rate must be positive",
        ),
        (
            "rate = \"1Gbit/s\"\nlatency = \"5\"",
            "x.toml:5: latency = \"5\": a time is a number with ns, us, ms, s, min or h, as in \"50ms\"",
        ),
    ];
    for (line, sentence) in cases {
        assert_eq!(
            error(&format!("[memory]\nsize = \"4MiB\"\n[link]\n{line}\n")),
            sentence
        );
    }
    for size in ["0", "\"0\"", "\"1TiB\"", "\"9999999TiB\"", "-1"] {
        let text = format!("[memory]\nsize = {size}\n[link]\nrate = \"1Gbit/s\"\n");
        let sentence = format!("x.toml:2: size = {size}: a memory has between 1 page and 256 GiB");
        assert_eq!(error(&text), sentence);
    }
}

#[test]
fn missing_and_unknown_sections_are_named() {
    let missing = "the section [link] is missing";
    assert_eq!(
        error("[memory]\nsize = \"4MiB\"\n"),
        format!("x.toml:1: {missing}")
    );
    assert_eq!(error(""), "x.toml:1: the section [memory] is missing");
    let unknown = |name: &str| {
        format!("unknown section {name}; allowed: memory, link, storage, guest, application, balloon, host, migration")
    };
    for (text, line, name) in [
        ("[networks]\na = 1", 6, "[networks]"),
        ("\n[[networks]] # all\n", 7, "[[networks]]"),
        ("[networks.a]", 6, "[networks]"),
    ] {
        assert_eq!(
            error(&format!("{SMALL}\n{text}")),
            format!("x.toml:{line}: {}", unknown(name))
        );
    }
    assert_eq!(
        error(&format!("{SMALL}[[guest.loads]]\n")),
        "x.toml:5: unknown section [[guest.loads]] in [guest]; allowed: vcpus, state, load"
    );
    assert_eq!(
        error(&format!(
            "{SMALL}[[guest.load]]\nmodel = \"uniform\"\nrate = \"1/s\"\n[[guest.load]]\n"
        )),
        "x.toml:8: the key `model` is missing in [[guest.load]]"
    );
}

/// TOML 1.0 lets tables and keys be written in all of these ways.
#[test]
fn every_spelling_has_its_line() {
    let link = "[link]\nrate = \"1Gbit/s\"\n";
    for (text, line) in [
        (format!("{link}[memory] # the memory\nsize = \"0\""), 4),
        (format!("{link}[ memory ]\n\nsize=\"0\""), 5),
        (format!("{link}[\"memory\"]\n'size' = \"0\""), 4),
        (format!("{link}['memory']\r\n\"size\" = \"0\"\r\n"), 4),
        (format!("memory = {{ zero = 0.5, size = \"0\" }}\n{link}"), 1),
        (format!("\nmemory.size = \"0\"\n{link}"), 2),
    ] {
        assert_eq!(
            error(&text),
            format!("x.toml:{line}: size = \"0\": a memory has between 1 page and 256 GiB")
        );
    }
    let load = "model = \"uniform\"";
    let none = "guest.load.0.rate: a load needs a rate, as in rate = \"50MB/s\"";
    for (text, line) in [
        (format!("[guest] # runs\n[[ guest . \"load\" ]] # one\n{load}"), 6),
        (format!("[guest]\nload = [{{ {load} }}]"), 6),
        (format!("[guest]\nload = [\n  {{ {load} }},\n]"), 7),
    ] {
        assert_eq!(error(&format!("{SMALL}{text}")), format!("x.toml:{line}: {none}"));
    }
}

#[test]
fn an_element_is_found_at_its_own_place() {
    let stream =
        |until| format!("[[link.competing]]\nrate = \"1MB/s\"\nfrom = \"2s\"\nuntil = \"{until}\"\n");
    assert_eq!(
        error(&format!("{SMALL}{}{}", stream("3s"), stream("1s"))),
        "x.toml:12: link.competing.1.until: `until` must be later than `from`"
    );
    let load = "[[guest.load]]\nmodel = \"uniform\"\nrate = \"1/s\"\nsize = \"1 page\"\n";
    assert_eq!(
        error(&format!("{SMALL}{}", load.repeat(65))),
        format!("x.toml:{}: guest.load.64: at most 64 loads", 5 + 64 * 4)
    );
    assert_eq!(
        error(&format!("{SMALL}{load}{}", load.replace("1/s", "1"))),
        "x.toml:11: rate = \"1\": a rate of accesses is a rate of bytes as in \"50MB/s\" (a page for each 4096), or accesses as in \"1000/s\""
    );
}

#[test]
fn values_of_another_kind_are_told_what_belongs_there() {
    let link = "[link]\nrate = \"1Gbit/s\"\n";
    assert_eq!(
        error(&format!("memory = 3\n{link}")),
        "x.toml:1: memory = 3: must be a section, [memory]"
    );
    for (text, line, sentence) in [
        ("[guest]\nload = 3", 6, "load = 3: must be a list of sections, [[guest.load]]"),
        ("[guest]\nload = [3]", 6, "load = 3: must be a section, [[guest.load]]"),
        ("[guest.load]\nmodel = \"lru\"", 5, "guest.load: must be a list of sections, [[guest.load]]"),
        ("[guest]\nvcpus = -1", 6, "vcpus = -1: must be a whole number between 0 and 4294967295"),
        ("[migration]\nassist = 1", 6, "assist = 1: must be true or false"),
        ("[migration]\nstrategy = 1", 6, "strategy = 1: must be a name in quotes"),
        ("[migration]\nbandwidth = true", 6, "bandwidth = true: a rate is a number with B/s, kB/s, MB/s, GB/s, KiB/s, MiB/s, GiB/s, kbit/s, Mbit/s or Gbit/s, as in \"1Gbit/s\""),
        ("[balloon]\ninflated = []", 6, "inflated = []: must be between 0 and 1, or between 0% and 100%"),
        ("[link]", 5, "`link` is there already; each key and section can be said once"),
    ] {
        assert_eq!(error(&format!("{SMALL}{text}\n")), format!("x.toml:{line}: {sentence}"));
    }
    assert_eq!(
        error(&format!("seed = -1\n{SMALL}")),
        "x.toml:1: seed = -1: must be a whole number, 0 or more"
    );
    assert_eq!(
        error(&format!("name = 1\n{SMALL}")),
        "x.toml:1: name = 1: must be text in quotes"
    );
}

#[test]
fn no_sentence_is_as_long_as_what_it_is_about() {
    let long = "x".repeat(1 << 20);
    for text in [
        format!("{SMALL}latency = \"{long}\""),
        format!("{SMALL}{long} = 1"),
        format!("{SMALL}[{long}]"),
        format!("{SMALL}{long} = 1\n{long} = 1"),
        format!("{SMALL}[migration]\nstrategy = \"{long}\""),
        format!("{SMALL}[migration]\nteleport = \"{long}\""),
        format!("{SMALL}[[application]]\nload = \"{long}\""),
        format!("{SMALL}x = {}", "[".repeat(1 << 16)),
        format!("{SMALL}{}x = 1", "x.".repeat(1 << 16)),
    ] {
        let said = error(&text);
        assert!(
            said.len() < 400 && said.starts_with("x.toml:"),
            "{}",
            &said[..400.min(said.len())]
        );
        assert!(!said.starts_with("x.toml: "), "{said}");
    }
}

#[test]
fn sections_that_do_not_fit_together_are_found() {
    let cases = [
        ("[migration]\nstrategy = \"fast\"", 6, "strategy = \"fast\": `fast` is not known here; allowed: precopy, postcopy, hybrid, stopcopy, guide, auto"),
        ("[migration]\nteleport = 1.5", 6, "teleport = 1.5: must be between 0 and 1, \"auto\" or false"),
        ("[migration]\nteleport = 0.5", 6, "migration.teleport: needs a storage network: a section [storage] with a rate"),
        ("[migration]\nprepaging = \"push\"", 6, "migration.prepaging: belongs to postcopy, hybrid, guide and auto"),
        ("[migration]\nmin = \"bytes\"", 6, "migration.min: belongs to the strategy auto"),
        ("[migration]\ncollect = true\nrounds = 1", 7, "migration.rounds: not together with collect = true, which sends one round for each of `snapshots`"),
        ("[guest]\nvcpus = 0", 6, "guest.vcpus: must be between 1 and 256"),
        (
            "[[guest.load]]\nmodel = \"uniform\"\nrate = \"1/s\"\n[[guest.load]]\nmodel = \"uniform\"\nrate = \"1/s\"\nhot = 0.5",
            8,
            "guest.load.1.size: an area of 0 pages from page 1024 on; the memory that is not free ends at page 1024",
        ),
        (
            "[[guest.load]]\nmodel = \"uniform\"\nrate = \"1/s\"\nhot = 0.5",
            8,
            "guest.load.0.hot: belongs to the model hot-cold, and this one is uniform",
        ),
        ("[[guest.load]]\nmodel = \"uniform\"", 5, "guest.load.0.rate: a load needs a rate, as in rate = \"50MB/s\""),
        ("[[application]]\nload = \"jvm\"", 6, "application.0.load: 0 loads have the name `jvm`; exactly one must"),
        ("[migration]\npasses = \"many\"", 6, "passes = \"many\": passes must be a number, or \"progress\" for as long as they help"),
    ];
    for (section, line, sentence) in cases {
        assert_eq!(
            error(&format!("{SMALL}{section}\n")),
            format!("x.toml:{line}: {sentence}")
        );
    }
}

#[test]
fn a_table_is_read_like_a_text_and_names_keys_in_place_of_lines() {
    let table = |text: &str| Scenario::from_table(text.parse().unwrap(), "x.toml");
    assert_eq!(table(SMALL).unwrap().memory_pages(), 1024);
    let wrong = |text: &str| table(text).unwrap_err().to_string();
    assert_eq!(
        wrong(&SMALL.replace("1Gbit/s", "-1Gbit/s")),
        "x.toml: link.rate: a rate must be positive"
    );
    assert_eq!(
        wrong(&SMALL.replace("rate", "rtae")),
        "x.toml: unknown key `rtae` in [link]; allowed: rate, latency, competing"
    );
}

proptest::proptest! {
    #[test]
    fn no_text_makes_it_panic(text in ".{0,200}", at in 0usize..60, junk in "[\\[\\]{}=\"a-z0-9.\n -]{0,12}") {
        let _ = Scenario::parse(&text, "x.toml");
        let mut changed = SMALL.to_owned();
        let at = (0..=at.min(changed.len())).rev().find(|&at| changed.is_char_boundary(at)).unwrap_or(0);
        changed.insert_str(at, &junk);
        let _ = Scenario::parse(&changed, "x.toml");
    }
}

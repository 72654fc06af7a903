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
    let zero = error("[memory]\nsize = 0\n[link]\nrate = \"1Gbit/s\"\n");
    assert_eq!(zero, "x.toml:2: memory.size: no pages: a memory has at least one");
    let large = error("[memory]\nsize = \"1TiB\"\n[link]\nrate = \"1Gbit/s\"\n");
    assert!(
        large.starts_with("x.toml:2: memory.size: 268435456 pages; at most 67108864"),
        "{large}"
    );
}

#[test]
fn sections_that_do_not_fit_together_are_found() {
    let cases = [
        ("[migration]\nstrategy = \"fast\"", 6, "strategy = \"fast\": `fast` is not known here; allowed: precopy, postcopy, hybrid, stopcopy, guide, auto"),
        ("[migration]\nteleport = 1.5", 6, "teleport = 1.5: R of 1.5: must be between 0 and 1, \"auto\" or false"),
        ("[migration]\nteleport = 0.5", 6, "migration.teleport: needs a storage network: a section [storage] with a rate"),
        ("[migration]\nprepaging = \"push\"", 6, "migration.prepaging: belongs to postcopy, hybrid, guide and auto"),
        ("[migration]\nmin = \"bytes\"", 6, "migration.min: belongs to the strategy auto"),
        ("[guest]\nvcpus = 0", 6, "guest.vcpus: must be between 1 and 256"),
        (
            "[[guest.load]]\nmodel = \"uniform\"\nrate = \"1/s\"\n[[guest.load]]\nmodel = \"uniform\"\nrate = \"1/s\"\nhot = 0.5",
            8,
            "guest.load.1.size: an area of 0 pages from page 1024 on; the memory that is not free ends at page 1024",
        ),
        (
            "[[guest.load]]\nmodel = \"uniform\"\nrate = \"1/s\"\nhot = 0.5",
            8,
            "guest.load.0.hot: belongs to the model HotCold, and this one is Uniform",
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

//! The scenarios that come with the program.

use std::fs;
use std::path::{Path, PathBuf};

use whimbrel_sim::{simulate, Scenario};

/// Those to begin with, and those of the papers.
fn files() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scenarios");
    let folders = [folder.join("papers"), folder];
    let entries = folders
        .iter()
        .flat_map(|folder| fs::read_dir(folder).into_iter().flatten().flatten());
    entries
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "toml"))
        .collect()
}

#[test]
fn each_is_right_and_moves_its_guest() {
    let mut count = 0;
    for path in files() {
        let text = fs::read_to_string(&path).unwrap();
        let scenario =
            Scenario::parse(&text, &path.to_string_lossy()).unwrap_or_else(|error| panic!("{error}"));
        let outcome = simulate(&scenario);
        let name = path.file_stem().unwrap().to_string_lossy();
        assert_eq!(outcome.scenario, name);
        assert!(outcome.is_finished, "{name} {:?}", outcome.notes);
        assert!(
            outcome.downtime_s > 0.0 && outcome.downtime_s <= outcome.total_s,
            "{name}"
        );
        assert!(
            outcome.pages_sent > 0 && outcome.bytes > 4096 * outcome.pages_sent / 10,
            "{name}"
        );
        count += 1;
    }
    assert!(count >= 8, "{count} scenarios");
}

/// What each file's head suggests must work, too.
#[test]
fn each_suggested_sweep_is_one() {
    let texts = files().into_iter().map(|path| fs::read_to_string(path).unwrap());
    let mut count = 0;
    for text in texts {
        for line in text.lines().filter(|line| line.starts_with("#   whimbrel sim ")) {
            let words = line.split(' ').skip_while(|word| *word != "--sweep");
            let sweeps = words
                .filter(|word| *word != "--sweep")
                .map(|word| word.replace('"', "").parse());
            let sweeps: Vec<whimbrel_sim::sweep::Sweep> = sweeps.collect::<Result<_, _>>().unwrap();
            let plan = whimbrel_sim::sweep::Plan::new(&text, "file", &sweeps, None).unwrap();
            plan.check().unwrap_or_else(|error| panic!("{line}: {error}"));
            count += 1;
        }
    }
    assert!(count >= 5, "{count} sweeps");
}
